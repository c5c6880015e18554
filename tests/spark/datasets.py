"""Datasets as the tests of `materialize` write and read them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from hvdspark.data.dataset.materialize import materialize
from hvdspark.data.dataset.selection import select
from hvdspark.specs import DatasetSpec
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@contextlib.contextmanager
def written(df: DataFrame, store: Store, features: list[str], **options: Any) -> Iterator[DatasetSpec]:
    of_store = {"num_workers": options.pop("num_workers", 2), "owner": options.pop("owner", None)}
    defaults: dict[str, Any] = {"labels": ["y"], "weight": None, "validation": None, "seed": 1}
    selection = select(df.schema, features, **(defaults | {"handle_invalid": "error"} | options))
    with materialize(df, selection, store, **of_store) as dataset:
        yield dataset


def rows_of(store: Store, dataset: DatasetSpec, split: str = "train") -> list[tuple[Any, ...]]:
    """The rows of a split, sorted, straight from the files."""
    rows: list[tuple[Any, ...]] = []
    for group in getattr(dataset, split):
        file = pq.ParquetFile(store.local_path(f"{dataset.path}/{group.path}"))
        table = file.read_row_group(group.index, columns=[column.name for column in dataset.columns])
        assert table.num_rows == group.rows
        rows += zip(*(column.to_pylist() for column in table.columns), strict=True)
    return sorted(rows, key=repr)
