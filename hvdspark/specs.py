"""Frozen values that cross process boundaries: driver -> task -> rank process -> store.

Everything here is plain data that survives `to_json` / `from_json` unchanged. No behaviour lives here.
"""

from __future__ import annotations

import array
import base64
import dataclasses
import functools
import json
import types
import typing
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from hvdspark.ranges import Range

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        dtype: the tensor's: "float32", "float64" or "int64" (never a float on the way), "uint8" of bytes to be scored.
        layout: "scalar" -> tensor [rows]; "fixed" -> tensor [rows, width]; "ragged" -> values and offsets; "sparse" ->
            the same tensor as "fixed", in files and on the way to the module only what is not 0.
        width: elements per row of a "fixed" or "sparse" column, else None.
        minimum, maximum: of a label, where they are known; what was found, not a part of the layout.
    """

    name: str
    dtype: str
    layout: str
    width: int | None = None
    minimum: float | None = field(default=None, compare=False)
    maximum: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group. `path` is relative to the dataset's directory; `index` is its number in the file."""

    path: str
    index: int
    rows: int


class RowGroups(Sequence[RowGroup]):
    """Row groups in columns: millions of them are a few bytes each, on every rank.

    Attributes:
        paths: the files, in order.
        starts: [len(paths) + 1], which row group is the first of each file; unsigned integers, as the others.
        indexes: [n], their numbers in their files.
        rows: [n], their rows.
    """

    def __init__(self, paths: Iterable[str], starts: Any, indexes: Any, rows: Any) -> None:
        self.paths = tuple(paths)
        self.starts, self.indexes, self.rows = _smallest(starts), _smallest(indexes), _smallest(rows)

    @classmethod
    def of(cls, groups: Iterable[RowGroup] = ()) -> RowGroups:
        """From row groups one by one; those of a file stand together."""
        paths: list[str] = []
        starts, indexes, rows = array.array("Q"), array.array("Q"), array.array("Q")
        for group in groups:
            if not paths or paths[-1] != group.path:
                paths.append(group.path)
                starts.append(len(rows))
            indexes.append(group.index)
            rows.append(group.rows)
        starts.append(len(rows))
        return cls(paths, starts, indexes, rows)

    @classmethod
    def joined(cls, parts: Sequence[RowGroups]) -> RowGroups:
        """Those of all parts, which have no file in common."""
        import numpy as np

        before = np.cumsum([0, *map(len, parts)])
        starts = [part.starts[:-1].astype(np.int64) + first for part, first in zip(parts, before, strict=False)]
        return cls(
            (path for part in parts for path in part.paths),
            np.concatenate([*starts, before[-1:]]),
            np.concatenate([np.zeros(0, np.uint8), *(part.indexes for part in parts)]),
            np.concatenate([np.zeros(0, np.uint8), *(part.rows for part in parts)]),
        )

    @property
    def total(self) -> int:
        """Rows of all of them."""
        return int(self.rows.sum(dtype="int64"))

    def __len__(self) -> int:
        return len(self.rows)

    @typing.overload
    def __getitem__(self, index: int) -> RowGroup: ...
    @typing.overload
    def __getitem__(self, index: slice) -> list[RowGroup]: ...
    def __getitem__(self, index: int | slice) -> RowGroup | list[RowGroup]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        file = int(self.starts.searchsorted(position, side="right")) - 1
        return RowGroup(self.paths[file], int(self.indexes[position]), int(self.rows[position]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowGroups) and self._columns() == other._columns()

    def __hash__(self) -> int:
        return hash(self._columns())

    def __repr__(self) -> str:
        return f"<{len(self)} row groups of {len(self.paths)} files, {self.total} rows>"

    def _columns(self) -> tuple[Any, ...]:
        return self.paths, *((values.dtype.str, values.tobytes()) for values in (self.starts, self.indexes, self.rows))


@dataclass(frozen=True)
class DatasetSpec:
    """A materialised DataFrame: what the driver learnt from one read of the footers.

    Attributes:
        path: directory of the dataset, relative to the store.
        columns: every column, features then labels then weight, in the order asked for.
        train, validation: row groups of the two splits (validation is empty when there is no split).
        row_bytes: what a row takes in memory on average, columns of any layout counted; 0 if not known.
        fingerprint: tells these rows from others, see `data.dataset.footers.Evidence.fingerprint`; "" if not known.
    """

    path: str
    columns: tuple[ColumnSpec, ...]
    train: RowGroups
    validation: RowGroups = field(default_factory=RowGroups.of)
    row_bytes: int = 0
    fingerprint: str = ""

    def column(self, name: str) -> ColumnSpec:
        """The column of that name. Raises StopIteration where there is none."""
        return next(column for column in self.columns if column.name == name)

    @property
    def train_rows(self) -> int:
        return self.train.total

    @property
    def validation_rows(self) -> int:
        return self.validation.total


def _limits(range: Range | None = None, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a field may be, written here alone: the check of a spec and Params read it."""
    return {"range": range, "choices": choices}


@dataclass(frozen=True)
class RowsTaken:
    """Tables of one collection with which a run begins.

    Attributes:
        source: number of the collection that they are in among those of the trained model.
        tables: their names.
    """

    source: int
    tables: tuple[str, ...]


@dataclass(frozen=True)
class WarmStart:
    """What a run begins with that a trained model has.

    Attributes:
        store_uri, directory, fingerprint: of the model's weights.
        weights: names of dense tensors, in both state dicts.
        rows: of each collection of sharded tables of the module; with no tables where there is nothing to take.
    """

    store_uri: str
    directory: str
    fingerprint: str
    weights: tuple[str, ...]
    rows: tuple[RowsTaken, ...]


@dataclass(frozen=True)
class TrainSpec:
    """Everything the training loop needs that is plain data. Python objects travel in `train.program.Program`.

    Defaults and limits of a field are those of the Param that it comes from. `train.check.check_spec` checks them.

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
        warm_start: what the run begins with that a trained model has; None: with fresh weights.
        checkpoint_interval_steps, checkpoint_interval_seconds: global batches, and seconds, from one checkpoint to the
            next; where both are None, as many as keep their cost small.
    """

    run_id: str
    store_uri: str
    dataset: DatasetSpec
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None = None
    batch_size: int = field(default=4096, metadata=_limits(Range(1)))
    epochs: int = field(default=1, metadata=_limits(Range(1)))
    learning_rate: float = field(default=1e-3, metadata=_limits(Range(0, open=True)))
    seed: int = 0
    shuffle: bool = True
    shuffle_rows: int = field(default=1 << 19, metadata=_limits(Range(1)))
    precision: str = field(default="auto", metadata=_limits(choices=("auto", "float32", "bfloat16")))
    accumulation_steps: int = field(default=1, metadata=_limits(Range(1)))
    gradient_clip_norm: float | None = field(default=None, metadata=_limits(Range(0, open=True)))
    compression: str = field(default="none", metadata=_limits(choices=("none", "fp16")))
    metrics: tuple[str, ...] = ()
    monitor: str = "val_loss"
    patience: int = field(default=0, metadata=_limits(Range(0)))
    schedule: str | None = None
    schedule_args: dict[str, float] = field(default_factory=dict)
    warm_start: WarmStart | None = None
    checkpoint_interval_steps: int | None = field(default=None, metadata=_limits(Range(1)))
    checkpoint_interval_seconds: float | None = field(default=None, metadata=_limits(Range(0, open=True)))

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.dataset.train_rows // (self.batch_size * self.accumulation_steps))

    @property
    def columns(self) -> list[str]:
        """What a step reads: features, labels and weight. A column may be several of them."""
        return [*self.features, *self.labels, *([self.weight] if self.weight else [])]


def to_json(value: Any) -> str:
    """JSON text of any spec of this module."""
    return json.dumps(_plain(value), sort_keys=True)


def from_json(cls: type[T], text: str) -> T:
    """The spec that `to_json` wrote. Raises KeyError, TypeError or ValueError when the text is not of that class."""
    try:
        return typing.cast(T, _build(cls, json.loads(text)))
    except (AttributeError, IndexError, RecursionError, zlib.error) as error:
        raise ValueError(f"no {cls.__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, RowGroups):
        columns = {"starts": value.starts, "indexes": value.indexes, "rows": value.rows}
        packed = {name: _pack(values.tobytes()) for name, values in columns.items()}
        dtypes = [values.dtype.str for values in columns.values()]
        return {**packed, "dtypes": dtypes, "paths": _pack(json.dumps(value.paths).encode())}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _build(annotation: Any, data: Any) -> Any:
    if annotation is RowGroups:
        import numpy as np

        names = ("starts", "indexes", "rows")
        columns = [np.frombuffer(_unpack(data[name]), dtype) for name, dtype in zip(names, data["dtypes"], strict=True)]
        return RowGroups(json.loads(_unpack(data["paths"])), *columns)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = _hints(annotation)
        return annotation(**{name: _build(hints[name], item) for name, item in data.items()})
    if origin in (tuple, list):
        return origin(_build(arguments[0], item) for item in data)
    if origin in (types.UnionType, typing.Union) and data is not None:
        return _build(next(option for option in arguments if option is not type(None)), data)
    return data


_hints = functools.cache(typing.get_type_hints)


def _pack(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 1)).decode()


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def _smallest(values: Any) -> NDArray[Any]:
    """The values in the smallest unsigned integers that hold them, not to be changed."""
    import numpy as np

    wide = np.asarray(values, None if isinstance(values, np.ndarray) else np.uint64)
    result = wide.astype(np.min_scalar_type(int(wide.max(initial=0))), copy=False)
    result.setflags(write=False)
    return result
