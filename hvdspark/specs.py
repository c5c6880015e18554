"""Frozen values that cross process boundaries: driver -> barrier task -> rank process -> store.

Everything here is plain data that survives `to_json` / `from_json` unchanged. No behaviour lives here.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Where one rank stands in the gang. Ranks are host-major: all ranks of a host are consecutive.

    Attributes:
        rank, size: global rank in [0, size).
        local_rank, local_size: among the ranks of the same host (one network and process namespace).
        cross_rank, cross_size: among the ranks with the same local_rank, one for each host.
        hostname: the host's name as the executor reports it.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    hostname: str


@dataclass(frozen=True)
class ColumnSpec:
    """How one column lies in the materialised Parquet files and in a batch.

    Attributes:
        name: column name in the files (and in the DataFrame).
        dtype: the tensor's dtype: "float32" or "int64". Integer ids are never a float on the way.
        layout: "scalar" -> tensor [rows]; "fixed" -> tensor [rows, width]; "ragged" -> values and offsets.
        width: elements per row of a "fixed" column, else None.
    """

    name: str
    dtype: str
    layout: str
    width: int | None = None


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group. `path` is relative to the dataset's directory; `index` is its number in the file."""

    path: str
    index: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class DatasetSpec:
    """A materialised DataFrame: what the driver learnt from one read of the footers.

    Attributes:
        path: directory of the dataset, relative to the store.
        columns: every column, features then labels then weight, in the order asked for.
        train, validation: row groups of the two splits (validation is empty when there is no split).
    """

    path: str
    columns: tuple[ColumnSpec, ...]
    train: tuple[RowGroup, ...]
    validation: tuple[RowGroup, ...] = ()

    @property
    def train_rows(self) -> int:
        return sum(group.rows for group in self.train)

    @property
    def validation_rows(self) -> int:
        return sum(group.rows for group in self.validation)


@dataclass(frozen=True)
class TrainSpec:
    """Everything the training loop needs that is plain data. Python objects travel in `train.program.Program`.

    Attributes:
        run_id: unique for each fit; names the run's directory `runs/<run_id>` in the store.
        store_uri: URI of the store that holds the dataset and the run.
        features, labels: column names, in the order the module and the loss take them.
        weight: column of row weights, or None.
        batch_size: rows of the *global* batch.
        learning_rate: as the user gave it; never rescaled by the number of ranks.
        precision: "auto" | "float32" | "bfloat16", for training steps; evaluation is always float32.
        accumulation_steps: global batches whose gradients are averaged before one optimizer step.
        gradient_clip_norm: global L2 norm, or None.
        compression: "none" | "fp16" on the wire.
        metrics: names computed on the validation rows ("logloss", "auc", "accuracy", "mse", "mae").
        monitor: what early stopping and best-epoch selection look at, e.g. "val_loss", "val_auc", "train_loss".
        patience: epochs without improvement before stopping; 0 turns early stopping off.
        schedule: learning-rate schedule: None | "cosine" | "linear" | "step" and its arguments.
        shuffle_rows: rows of the shuffle window on each rank.
    """

    run_id: str
    store_uri: str
    dataset: DatasetSpec
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None = None
    batch_size: int = 4096
    epochs: int = 1
    learning_rate: float = 1e-3
    seed: int = 0
    shuffle: bool = True
    shuffle_rows: int = 1 << 19
    precision: str = "auto"
    accumulation_steps: int = 1
    gradient_clip_norm: float | None = None
    compression: str = "none"
    metrics: tuple[str, ...] = ()
    monitor: str = "val_loss"
    patience: int = 0
    schedule: str | None = None
    schedule_args: dict[str, float] = dataclasses.field(default_factory=dict)


def to_json(value: Any) -> str:
    """JSON text of any spec of this module."""
    return json.dumps(dataclasses.asdict(value), sort_keys=True)


def from_json(cls: type[T], text: str) -> T:
    """The spec that `to_json` wrote. Raises KeyError or TypeError when the text is not of that class."""
    return typing.cast(T, _build(cls, json.loads(text)))


def _build(annotation: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = typing.get_type_hints(annotation)
        return annotation(**{name: _build(hints[name], item) for name, item in data.items()})
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in data)
    if origin in (types.UnionType, typing.Union) and data is not None:
        return _build(next(option for option in arguments if option is not type(None)), data)
    return data
