"""What a run is, written down beside its checkpoints, so that a later driver goes on with the same one or refuses.

What decides the result is compared: settings, columns, how rows were chosen, module, loss and optimizer. What does not
(the number of ranks, time limits, how often checkpoints are written) may be another, and there may be more epochs.
Code is known by its name alone: whether a function of the user's has changed meanwhile, nobody can see here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.tables import collections_of
from hvdspark.data.dataset import leases
from hvdspark.data.dataset.selection import Selection
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.specs import DatasetSpec, TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.program import Program

# Fields of TrainSpec that decide what is trained; the others say where, when and how long.
DECISIVE = (
    *("features", "labels", "weight", "batch_size", "learning_rate", "seed", "shuffle", "shuffle_rows", "precision"),
    *("accumulation_steps", "gradient_clip_norm", "compression", "metrics", "monitor", "patience", "schedule"),
    *("schedule_args", "warm_start"),
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_LONGEST = 200


@dataclass(frozen=True)
class RunRecord:
    """What a run is.

    Attributes:
        settings: JSON-able, what must be the same to go on, by name.
        epochs: most passes over the rows.
        dataset: its rows, which are kept for it.
        generation: of its last launch.
    """

    settings: dict[str, Any]
    epochs: int
    dataset: DatasetSpec
    generation: int = 0


def settings_of(spec: TrainSpec, program: Program, selection: Selection) -> dict[str, Any]:
    """What must be the same to go on with a run, JSON-able, by name. Pure."""
    settings: dict[str, Any] = {name: getattr(spec, name) for name in DECISIVE}
    if spec.warm_start is not None:
        settings["warm_start"] = spec.warm_start.fingerprint
    settings["validation"] = (selection.validation, selection.group)
    settings["handle_invalid"] = selection.handle_invalid
    settings["module"] = _described(program.module)
    tables = [config for collection in collections_of(program.module) for config in collection.tables.values()]
    settings["tables"] = [_ADDRESS.sub("", repr(config)) for config in tables]
    settings["weights"] = {
        name: f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        for name, value in program.module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    for name in ("loss", "optimizer", "loss_weights", "schedule"):
        settings[f"program.{name}"] = _described(getattr(program, name))
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain


def record_of(spec: TrainSpec, program: Program, selection: Selection) -> RunRecord:
    """What a run is that has not been launched yet. Pure."""
    return RunRecord(settings_of(spec, program, selection), spec.epochs, spec.dataset)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two settings, in words. Pure."""
    found = []
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{name}: {text}" for text in differences(before, after)]
        else:
            found.append(f"{name} was {_short(before)} and is {_short(after)}")
    return found


def check_same(run_id: str, then: RunRecord, settings: Mapping[str, Any], epochs: int) -> None:
    """Refuse to go on with a run that is another one.

    Raises:
        ConfigurationError: settings differ, or fewer epochs are asked for.
    """
    found = differences(then.settings, settings)
    if epochs < then.epochs:
        found.append(f"epochs was {then.epochs} and is {epochs}")
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise ConfigurationError(
            f"run {run_id!r} was begun with other settings: {shown}",
            where="run_id",
            hint="give the settings with which it was begun, or another name",
        )


def write_record(store: Store, run_id: str, record: RunRecord) -> None:
    """Raises StoreError."""
    store.write_text(leases.record_of(run_id), to_json(record))


def read_record(store: Store, run_id: str) -> RunRecord | None:
    """What a run of this name is; None where there is none.

    Raises:
        StoreError: it cannot be read.
        CheckpointError: it is damaged.
    """
    if not leases.has_record(store, run_id):
        return None
    text = store.read_text(leases.record_of(run_id))
    try:
        record = from_json(RunRecord, text)
        # Paths of the store are checked where they are used; this one is deleted in the end.
        if re.fullmatch(r"datasets/[0-9a-f]+", record.dataset.path) is None:
            raise ValueError(f"no path of a dataset: {record.dataset.path!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "the record of a run cannot be read",
            value=str(error),
            where=store.spark_uri(leases.record_of(run_id)),
            hint="give another name, or delete the run's directory",
        ) from error
    return record


def _described(value: Any) -> Any:
    """JSON-able; the same in another process for the same code and values."""
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        return f"{_name(type(value))}: {_ADDRESS.sub('', repr(value))}"
    if isinstance(value, functools.partial):
        return [_described(value.func), _described(value.args), _described(value.keywords)]
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_described(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _name(value if hasattr(value, "__qualname__") else type(value))


def _name(what: Any) -> str:
    return f"{what.__module__}.{what.__qualname__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
