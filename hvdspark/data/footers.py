"""What the written Parquet files say about themselves: row groups, nulls, NaN, lengths of arrays.

The checks of the rows read nothing but the files' footers, which Parquet writes anyway. So they cost no second pass
over the DataFrame, no extra work for each row, and they judge what was really written. What they rely on:

* A column chunk counts its nulls. For an array column that is one for each null element, null array and empty array.
* Spark's Parquet writer orders NaN after every number, so a chunk with a NaN has the maximum NaN.
* The length of every array is written beside it as a column of its own (run-length encoded: next to nothing), whose
  minimum and maximum are those of the lengths.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.errors import DataError, StoreError
from hvdspark.specs import RowGroup
from hvdspark.store import Store

# Footers are small reads: latency counts, and only on remote stores.
_FOOTER_THREADS = 16


@dataclass
class ColumnEvidence:
    """One column over all row groups of a split.

    Attributes:
        nulls: nulls, as Parquet counts them.
        minimum, maximum: of all values that are neither null nor NaN; None if there is none.
        unordered: some row group has values but no usable minimum and maximum: NaN, as far as we know.
    """

    nulls: int = 0
    minimum: float | int | None = None
    maximum: float | int | None = None
    unordered: bool = False

    @property
    def finite(self) -> bool:
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        return not self.unordered and all(math.isfinite(bound) for bound in bounds)

    def add(self, chunk: Any) -> None:
        """Take in the metadata of one column chunk."""
        statistics = chunk.statistics
        if statistics is None or not statistics.has_null_count:
            raise DataError("a Parquet file without statistics cannot be checked", value=chunk.path_in_schema)
        self.nulls += statistics.null_count
        if statistics.null_count == chunk.num_values:
            return
        if not statistics.has_min_max or statistics.max != statistics.max:
            self.unordered = True
            return
        self.minimum = statistics.min if self.minimum is None else min(self.minimum, statistics.min)
        self.maximum = statistics.max if self.maximum is None else max(self.maximum, statistics.max)


@dataclass
class Evidence:
    """What the footers of some directories say.

    Attributes:
        groups: for each directory its row groups with at least one row, in file order.
        columns: for each Parquet leaf column what all directories together hold.
    """

    groups: list[list[RowGroup]] = dataclasses.field(default_factory=list)
    columns: list[ColumnEvidence] = dataclasses.field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """Rows of each directory."""
        return [sum(group.rows for group in groups) for groups in self.groups]

    def add_file(self, path: str, metadata: Any) -> None:
        """Take in one file of the last directory: `path` relative to the dataset, `metadata` its FileMetaData."""
        self.columns = self.columns or [ColumnEvidence() for _ in range(metadata.num_columns)]
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                self.groups[-1].append(RowGroup(path, index, group.num_rows, group.total_byte_size))
                for position, column in enumerate(self.columns):
                    column.add(group.column(position))


def read_footers(store: Store, dataset: str, directories: Sequence[str]) -> Evidence:
    """Read the footers of all Parquet files in some directories of a dataset, once.

    Args:
        store: the store.
        dataset: directory of the dataset, relative to the store.
        directories: relative to the dataset; a missing one holds no rows.

    Raises:
        StoreError: a file cannot be read.
    """
    evidence = Evidence()
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS, "hvdspark-footers") as threads:
        for directory in directories:
            names = [name for name in store.list(f"{dataset}/{directory}") if name.endswith(".parquet")]
            paths = [f"{directory}/{name}" for name in names]
            evidence.groups.append([])
            footers = threads.map(lambda path: read_footer(store, f"{dataset}/{path}"), paths)
            for path, metadata in zip(paths, footers, strict=True):
                evidence.add_file(path, metadata)
    return evidence


def read_footer(store: Store, path: str) -> Any:
    """The pyarrow FileMetaData of one Parquet file. StoreError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.open_read(path) as file:
            return pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise StoreError("not a readable Parquet file", value=store.spark_uri(path)) from error


def decoded_bytes(chunk: Any) -> int:
    """What the values of a column chunk, given by its metadata, take in memory. In a file it may be next to nothing."""
    return int(chunk.num_values) * (8 if chunk.physical_type in ("INT64", "DOUBLE") else 4)


def count_where(store: Store, dataset: str, paths: Sequence[str], column: str, condition: str) -> int:
    """How many values, or elements of arrays, are "nan" or "zero". Reads that one column of the files."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    for path in paths:
        with store.open_read(f"{dataset}/{path}") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                values = batch.column(0)
                flat = values.flatten() if pa.types.is_list(values.type) else values
                marked = pc.is_nan(flat) if condition == "nan" else pc.equal(flat, 0)
                total += pc.sum(marked).as_py() or 0
    return total
