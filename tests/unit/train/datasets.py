"""Small Parquet datasets in the shape the materialiser leaves them in, written without Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups, TrainSpec
from hvdspark.store import Store

Values = Any  # numpy [rows] or [rows, width], or a list of lists of different lengths


def write_dataset(
    store: Store,
    train: Mapping[str, Values],
    validation: Mapping[str, Values] | None = None,
    *,
    path: str = "datasets/d",
    group_rows: Sequence[int] = (),
) -> DatasetSpec:
    """Write columns as Parquet; `group_rows` cuts the training rows into row groups (one if empty)."""
    columns = tuple(_column(name, values) for name, values in train.items())
    return DatasetSpec(
        path=path,
        columns=columns,
        train=_write_split(store, f"{path}/train", train, group_rows),
        validation=_write_split(store, f"{path}/validation", validation, ())
        if validation is not None
        else RowGroups.of(),
    )


def click_columns(rows: int, seed: int = 0, weighted: bool = False) -> dict[str, Values]:
    """Three float features in one array, one id, one 0/1 label from a noisy linear rule, and maybe a weight."""
    generator = np.random.default_rng(seed)
    dense = generator.standard_normal((rows, 3)).astype(np.float32)
    ids = generator.integers(0, 11, rows)
    logit = dense @ np.array([1.5, -2.0, 0.5]) + np.where(ids % 2 == 0, 1.0, -1.0)
    label = (logit + generator.logistic(size=rows) > 0).astype(np.float32)
    columns: dict[str, Values] = {"dense": dense, "id": ids.astype(np.int64), "label": label}
    if weighted:
        columns["weight"] = generator.uniform(0.0, 3.0, rows).astype(np.float32)
    return columns


def train_spec(store: Store, dataset: DatasetSpec, **changes: Any) -> TrainSpec:
    """A spec for `click_columns`, deterministic in file order."""
    names = [column.name for column in dataset.columns]
    values: dict[str, Any] = {
        "run_id": "run-1",
        "store_uri": store.uri,
        "dataset": dataset,
        "features": ("dense", "id"),
        "labels": ("label",),
        "weight": "weight" if "weight" in names else None,
        "batch_size": 16,
        "shuffle": False,
        "precision": "float32",
        "learning_rate": 0.05,
        **changes,
    }
    return TrainSpec(**values)


def _column(name: str, values: Values) -> ColumnSpec:
    if isinstance(values, list):
        return ColumnSpec(name, "int64", "ragged")
    width = values.shape[1] if values.ndim == 2 else None
    return ColumnSpec(name, str(values.dtype), "scalar" if width is None else "fixed", width)


def _write_split(store: Store, path: str, columns: Mapping[str, Values], group_rows: Sequence[int]) -> RowGroups:
    table = pa.table({name: list(values) if _is_array(values) else values for name, values in columns.items()})
    folder = store.local_path(path)
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    sizes = list(group_rows) or [table.num_rows]
    assert sum(sizes) == table.num_rows
    start = 0
    with pq.ParquetWriter(folder / "part-0.parquet", table.schema) as writer:
        for rows in sizes:
            writer.write_table(table.slice(start, rows), row_group_size=max(rows, 1))
            start += rows
    relative = path.rsplit("/", 1)[-1] + "/part-0.parquet"
    return RowGroups.of(RowGroup(relative, index, rows) for index, rows in enumerate(sizes))


def _is_array(values: Values) -> bool:
    return isinstance(values, list) or values.ndim == 2
