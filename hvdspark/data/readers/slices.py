"""Row groups of the written Parquet files, decoded in slices: what is held is bounded, however many rows there are."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hvdspark.data.dataset.footers import decoded_bytes
from hvdspark.data.dataset.schema import POSITIONS
from hvdspark.data.readers.protocol import Columns, RaggedRows, pack_entries
from hvdspark.errors import DataError, HvdSparkError, StoreError
from hvdspark.specs import ColumnSpec, RowGroup
from hvdspark.store import Store
from hvdspark.store.patience import patiently

MAX_CHUNK_ROWS = 1 << 16
# What a thread decodes at a time. A row group of 4 MB may hold any number of rows that are nearly the same.
_SLICE_BYTES = 24 << 20
# Repetition and definition level of each element of an array, two bytes each.
_LEVEL_BYTES = 4


def read_slices(
    store: Store, path: str, group: RowGroup, footer: Any, names: Collection[str]
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group in order, in slices of at most MAX_CHUNK_ROWS. The file is open until the last one.

    A store that fails for a while is asked again (see `patience`): what was decoded before is decoded once more.

    Args:
        path: of the file, in the store.
        footer: of the file, as `footers.read_footer` gives it.
        names: columns that are read.

    Raises:
        StoreError: the file cannot be read.
        DataError: the row group is not the one that the dataset's spec tells of, or cannot be decoded.
    """
    metadata = footer.row_group(group.index)
    if metadata.num_rows != group.rows:
        raise DataError("a row group has changed since it was written", value=group.path)
    local, rows, given = store.local_path(path), slice_rows(metadata, names), 0
    with contextlib.ExitStack() as opened:
        slices: Iterator[pa.RecordBatch] | None = None

        def decoded() -> pa.RecordBatch | None:
            """The slice behind those that were given."""
            nonlocal slices
            with errors_named(store, path):
                try:
                    if slices is None:
                        source = pa.memory_map(str(local)) if local is not None else store.open_read(path)
                        opened.enter_context(source)
                        # On a remote store the columns of a row group are fetched together, in few large requests.
                        file = pq.ParquetFile(source, metadata=footer, pre_buffer=local is None)
                        # Who reads is parallel enough: threads of a pool on all ranks of a host, or tasks of a job.
                        slices = file.iter_batches(
                            rows, row_groups=[group.index], columns=list(names), use_threads=False
                        )
                        for _ in range(given):
                            next(slices)
                    return next(slices, None)
                except (OSError, pa.ArrowException):
                    slices = None
                    opened.close()
                    raise

        while (batch := patiently(decoded)) is not None:
            given += 1
            yield batch


def slice_rows(group: Any, names: Collection[str]) -> int:
    """How many rows of a row group are decoded at a time: equal slices of at most _SLICE_BYTES and MAX_CHUNK_ROWS.

    Args:
        group: the row group's metadata, as pyarrow has it.
        names: the columns that are read.
    """
    decoded = 0
    for index in range(group.num_columns):
        chunk = group.column(index)
        path = chunk.path_in_schema
        if path in names:
            decoded += decoded_bytes(chunk)
        elif any(path.startswith(f"{name}.") for name in names):
            decoded += decoded_bytes(chunk) + _LEVEL_BYTES * chunk.num_values
    slices = max(-(-decoded // _SLICE_BYTES), -(-group.num_rows // MAX_CHUNK_ROWS), 1)
    rows: int = max(1, -(-group.num_rows // slices))
    return rows


def columns_of(batch: pa.RecordBatch, columns: Sequence[ColumnSpec]) -> Columns:
    """A slice as arrays that share its memory.

    Raises:
        DataError: see `values_of`.
    """
    dense: dict[str, NDArray[Any]] = {}
    ragged: dict[str, RaggedRows] = {}
    for column in columns:
        array = batch.column(column.name)
        if column.layout == "scalar":
            dense[column.name] = values_of(array, column)
            continue
        values = values_of(array.flatten(), column)
        if column.layout == "sparse":
            ragged[column.name] = _entries(array, values, batch.column(f"{POSITIONS}{column.name}"))
        elif column.layout == "fixed":
            dense[column.name] = values.reshape(batch.num_rows, column.width or 0)
        else:
            offsets = array.offsets.to_numpy().astype(np.int64)
            ragged[column.name] = RaggedRows(values, offsets - offsets[0])  # flatten() starts at the first row
    return Columns(dense, ragged)


def names_in_files(columns: Sequence[ColumnSpec]) -> list[str]:
    """The columns of the files that hold these columns."""
    names = [column.name for column in columns]
    return names + [f"{POSITIONS}{column.name}" for column in columns if column.layout == "sparse"]


def _entries(array: pa.ListArray, values: NDArray[np.float32], positions: pa.ListArray) -> RaggedRows:
    """Rows of a sparse column; a row without positions holds all its values, in order."""
    offsets = array.offsets.to_numpy().astype(np.int64)
    offsets -= offsets[0]
    where = positions.flatten().to_numpy()
    if positions.null_count:
        lengths = np.diff(offsets)
        kept = np.repeat(positions.is_valid().to_numpy(zero_copy_only=False), lengths)
        all_of_them = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
        all_of_them[kept] = where
        where = all_of_them
    return RaggedRows(pack_entries(where, values), offsets)


@contextlib.contextmanager
def errors_named(store: Store, path: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read and decoded becomes an error of ours that names the file.

    Raises:
        StoreError: it cannot be read.
        DataError: it cannot be decoded, or is not what the dataset's spec says.
    """
    try:
        yield
    except HvdSparkError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"a row group cannot be read ({type(error).__name__}: {error})",
            value=store.spark_uri(path),
            hint="was the dataset deleted, or the disk full, while ranks were reading?",
        ) from error
    except Exception as error:
        raise DataError(f"a row group cannot be decoded ({type(error).__name__}: {error})", value=path) from error


def values_of(array: pa.Array, column: ColumnSpec) -> NDArray[Any]:
    """A scalar column, or the flat elements of an array column, without a copy.

    Raises:
        DataError: there are nulls, or values of another type than the dataset's spec says.
    """
    if array.null_count:
        raise DataError("nulls in a dataset", value=array.null_count, where=f"column {column.name!r}")
    values: NDArray[Any] = array.to_numpy(zero_copy_only=True)
    if values.dtype != column.dtype:
        raise DataError("wrong type in a dataset", value=str(values.dtype), where=f"column {column.name!r}")
    return values
