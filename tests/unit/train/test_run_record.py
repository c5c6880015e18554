"""What must be the same to go on with a run."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hvdspark.data.dataset.selection import Selection
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.specs import DatasetSpec, RowGroup, RowGroups, TrainSpec, WarmStart
from hvdspark.store import Store
from hvdspark.train.program import Program
from hvdspark.train.run_record import (
    DECISIVE,
    RunRecord,
    check_same,
    differences,
    read_record,
    settings_of,
    write_record,
)

DATA = DatasetSpec("datasets/00ff", (), RowGroups.of([RowGroup("a.parquet", 0, 7)]), fingerprint="f")
SPEC = TrainSpec("r", "file:///s", DATA, ("x",), ("y",), epochs=3)
# Where, when and how long: none of it changes what is trained.
ELSEWHERE = {
    *("run_id", "store_uri", "dataset", "epochs"),
    *("checkpoint_interval_steps", "checkpoint_interval_seconds"),
}


def loss(output: Any, label: Any) -> Any:
    return output - label


def program(**changes: Any) -> Program:
    values = {"module": nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)), "loss": "mse", **changes}
    return Program(**values)


def settings(program_: Program | None = None, selection: Selection | None = None, **of_spec: Any) -> dict[str, Any]:
    spec = dataclasses.replace(SPEC, **of_spec)
    return settings_of(spec, program_ or program(), selection or Selection(()))


def test_every_field_of_a_spec_is_decisive_or_is_not() -> None:
    fields = {field.name for field in dataclasses.fields(TrainSpec)}
    assert set(DECISIVE).isdisjoint(ELSEWHERE)
    assert fields == {*DECISIVE, *ELSEWHERE}, "say of a new field whether a run goes on with another value of it"


def test_the_same_again_is_the_same() -> None:
    one = settings(program(loss=loss, optimizer=functools.partial(torch.optim.SGD, lr=0.1)))
    assert one == settings(program(loss=loss, optimizer=functools.partial(torch.optim.SGD, lr=0.1)))
    assert settings(program(loss=lambda a, b: a)) == settings(program(loss=lambda a, b: a))
    assert settings() == settings(run_id="other", store_uri="s3a://b", epochs=9, checkpoint_interval_steps=3)
    values = {"value": [1, 2], "tuple": (1, 2)}
    assert differences(values, values) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda: settings(learning_rate=0.2), "learning_rate was 0.001 and is 0.2"),
        (lambda: settings(schedule_args={"warmup_steps": 3.0}), "schedule_args: warmup_steps was None and is 3.0"),
        (lambda: settings(features=("z",)), r"features was \['x'\] and is \['z'\]"),
        (lambda: settings(selection=Selection((), handle_invalid="skip")), "handle_invalid was 'error' and is 'skip'"),
        (lambda: settings(selection=Selection((), validation=0.2)), "validation was"),
        (lambda: settings(program(module=nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1)))), "module was .*p=0.5"),
        (lambda: settings(program(module=nn.Linear(3, 2))), r"weights: 0.weight was 'float32\[2, 3\]' and is None"),
        (lambda: settings(program(optimizer="sgd")), "program.optimizer was 'adam' and is 'sgd'"),
        (lambda: settings(program(loss=loss)), "program.loss was 'mse' and is '.*test_run_record.loss'"),
        (lambda: settings(warm_start=WarmStart("s", "d", "print", (), ())), "warm_start was None and is 'print'"),
    ],
)
def test_what_differs_is_named(changed: Any, said: str) -> None:
    then = RunRecord(settings(), 3, DATA)
    with pytest.raises(ConfigurationError, match=rf"run 'mine' was begun with other settings: .*{said}.*Hint: give"):
        check_same("mine", then, changed(), 3)


def test_tables_are_told_apart() -> None:
    def of(dim: int) -> dict[str, Any]:
        tables = [TableConfig("t", dim=dim, num_embeddings=100_000)]
        return settings(program(module=ShardedEmbeddingCollection(tables, {"f": "t"})))

    assert differences(of(4), of(4)) == []
    assert any(text.startswith("tables was") for text in differences(of(4), of(8)))


def test_epochs_may_grow() -> None:
    then = RunRecord(settings(), 3, DATA)
    check_same("mine", then, settings(), 5)
    with pytest.raises(ConfigurationError, match="epochs was 3 and is 2"):
        check_same("mine", then, settings(), 2)


def test_many_differences_are_counted() -> None:
    then = RunRecord({str(k): k for k in range(9)}, 3, DATA)
    with pytest.raises(ConfigurationError, match="and 4 more"):
        check_same("mine", then, {}, 3)


def test_written_and_read(tmp_path: Path) -> None:
    store = Store(tmp_path.as_uri())
    assert read_record(store, "mine") is None
    record = RunRecord(settings(), 3, DATA, generation=2)
    write_record(store, "mine", record)
    assert read_record(store, "mine") == record


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "{}",
        lambda text: "[]",
        lambda text: text.replace("datasets/00ff", "datasets/../runs"),
        lambda text: text.replace("datasets/00ff", "/etc"),
        lambda text: text.replace('"settings"', '"settinks"'),
        lambda text: text.replace('"paths": "', '"paths": "A'),
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: Any) -> None:
    store = Store(tmp_path.as_uri())
    write_record(store, "mine", RunRecord({}, 3, DATA))
    store.write_text("runs/mine/run.json", damage(store.read_text("runs/mine/run.json")))
    with pytest.raises(CheckpointError, match="record of a run cannot be read.*runs/mine/run.json.*Hint"):
        read_record(store, "mine")
