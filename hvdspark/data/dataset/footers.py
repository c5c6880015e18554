"""What the written Parquet files say about themselves: row groups, nulls, NaN, lengths of arrays.

The checks of the rows read nothing but the files' footers, which Parquet writes anyway. So they cost no second pass
over the DataFrame, no extra work for each row, and they judge what was really written. What they rely on:

* A column chunk counts its nulls. For an array column that is one for each null element, null array and empty array.
* Spark's Parquet writer orders NaN after every number, so a chunk with a NaN has the maximum NaN.
* The length of every array is written as a further column (run-length encoded: next to nothing), whose
  minimum and maximum are those of the lengths.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvdspark.errors import DataError, HvdSparkError, StoreError
from hvdspark.specs import ColumnSpec, RowGroup, RowGroups, from_json, to_json
from hvdspark.store import Store
from hvdspark.store.patience import patient

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Footers are small reads: latency counts, and only on remote stores.
_FOOTER_THREADS = 16
# A footer may take half a MB in memory, and 20 ms: 40 columns of 35 row groups.
_BLOCK_FILES = 64
# More files than these are read by the executors.
_DRIVER_FILES = 1024


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
        self._widen(statistics.min, statistics.max)

    def merge(self, other: ColumnEvidence) -> None:
        """Take in what is known of other row groups."""
        self.nulls += other.nulls
        self.unordered |= other.unordered
        if other.minimum is not None and other.maximum is not None:
            self._widen(other.minimum, other.maximum)

    def _widen(self, minimum: float | int, maximum: float | int) -> None:
        self.minimum = minimum if self.minimum is None else min(self.minimum, minimum)
        self.maximum = maximum if self.maximum is None else max(self.maximum, maximum)


@dataclass
class Evidence:
    """What the footers of some directories say.

    Attributes:
        groups: for each directory its row groups with at least one row, in file order.
        columns: for each Parquet leaf column what all directories together hold.
        decoded_bytes: what all values take in memory.
    """

    groups: list[RowGroups] = dataclasses.field(default_factory=list)
    columns: list[ColumnEvidence] = dataclasses.field(default_factory=list)
    decoded_bytes: int = 0

    @property
    def rows(self) -> list[int]:
        """Rows of each directory."""
        return [groups.total for groups in self.groups]

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, on average; 0 if there is none."""
        return self.decoded_bytes // max(1, sum(self.rows))

    def fingerprint(self, columns: Sequence[ColumnSpec]) -> str:
        """32 hexadecimal digits, the same for the same rows in any order and any files.

        Of names and types of the columns, the rows of each directory, and nulls, minimum and maximum of every column:
        no proof that rows are the same, but nearly always other digits where they are not. Costs no look at a row.
        """
        found = [dataclasses.astuple(column) for column in self.columns]
        layout = [(column.name, column.dtype, column.layout, column.width) for column in columns]
        text = repr((layout, self.rows, self.decoded_bytes, found))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def add_directory(self, parts: Iterable[Evidence]) -> None:
        """Take in a directory whose files were read in parts."""
        groups = []
        for part in parts:
            groups += part.groups
            self.decoded_bytes += part.decoded_bytes
            self.columns = self.columns or [ColumnEvidence() for _ in part.columns]
            for column, found in zip(self.columns, part.columns, strict=bool(part.columns)):
                column.merge(found)
        self.groups.append(RowGroups.joined(groups))


def read_footers(
    store: Store, dataset: str, directories: Sequence[str], session: SparkSession | None = None
) -> Evidence:
    """Read the footers of all Parquet files in some directories of a dataset, once.

    Args:
        store: the store.
        dataset: directory of the dataset, relative to the store.
        directories: relative to the dataset; a missing one holds no rows.
        session: whose executors read them where there are many files: on the driver, 10^5 files would take hours.

    Raises:
        StoreError: a file cannot be read.
    """
    evidence = Evidence()
    for directory in directories:
        names = [name for name in store.list(f"{dataset}/{directory}") if name.endswith(".parquet")]
        paths = [f"{directory}/{name}" for name in names]
        blocks = [paths[first : first + _BLOCK_FILES] for first in range(0, len(paths), _BLOCK_FILES)]
        if session is not None and len(paths) > _DRIVER_FILES:
            evidence.add_directory(_read_in_tasks(session, store, dataset, blocks))
        else:
            evidence.add_directory(read_files(store, dataset, block) for block in blocks)
    return evidence


def read_files(store: Store, dataset: str, paths: Sequence[str]) -> Evidence:
    """What the footers of some files say, as of one directory. Holds all these footers at a time."""
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS, "hvdspark-footers") as threads:
        footers = list(threads.map(lambda path: read_footer(store, f"{dataset}/{path}"), paths))
    evidence = Evidence([])
    groups = []
    for path, metadata in zip(paths, footers, strict=True):
        evidence.columns = evidence.columns or [ColumnEvidence() for _ in range(metadata.num_columns)]
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            if group.num_rows:
                groups.append(RowGroup(path, index, group.num_rows))
                for position, column in enumerate(evidence.columns):
                    chunk = group.column(position)
                    column.add(chunk)
                    evidence.decoded_bytes += decoded_bytes(chunk)
    evidence.groups.append(RowGroups.of(groups))
    return evidence


def _read_in_tasks(
    session: SparkSession, store: Store, dataset: str, blocks: Sequence[Sequence[str]]
) -> Iterator[Evidence]:
    """The evidence of each block of files, read by a task of Spark."""

    def read(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            for number in batch.column(0).to_pylist():
                try:
                    text = to_json(read_files(store, dataset, blocks[number]))
                except HvdSparkError:
                    text = ""
                yield pa.RecordBatch.from_pydict({"number": [number], "evidence": [text]})

    numbers = session.range(0, len(blocks), 1, len(blocks))
    rows = numbers.mapInArrow(read, "number bigint, evidence string").collect()
    for number, text in sorted(rows):
        # What a task could not read is tried here once more: the error is then one of this process.
        yield from_json(Evidence, text) if text else read_files(store, dataset, blocks[number])


@patient
def read_footer(store: Store, path: str) -> Any:
    """The pyarrow FileMetaData of one Parquet file. StoreError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with store.open_read(path) as file:
            return pq.read_metadata(file)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:  # of a damaged footer it may be any
        raise StoreError(
            f"not a readable Parquet file ({type(error).__name__})", value=store.spark_uri(path)
        ) from error


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
