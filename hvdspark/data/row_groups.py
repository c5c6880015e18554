"""Reading row groups through Petastorm's worker pool, in an order of our own.

This is one level below `petastorm.make_batch_reader`: the same `ThreadPool`, fed by a `Ventilator`, running a
`WorkerBase` that reads one row group with pyarrow. Petastorm's `Reader` is left out, because on every rank it lists
the directory and reads all footers again, deals whole row groups to ranks once and for all (and fails with fewer row
groups than ranks) and takes seed 0 for no seed; its `ArrowReaderWorker`, because it opens each file and parses its
footer twice for each row group, and results go through pandas, where a list column becomes a loop over rows. Here
`plan` decides what a rank reads, and columns are handed on as they come out of Parquet.
"""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from petastorm.workers_pool import VentilatedItemProcessedMessage
from petastorm.workers_pool.thread_pool import ThreadPool
from petastorm.workers_pool.ventilator import Ventilator
from petastorm.workers_pool.worker_base import WorkerBase

from hvdspark.data.footers import read_footer
from hvdspark.data.window import Columns, RaggedRows
from hvdspark.errors import DataError, HvdSparkError, StoreError
from hvdspark.specs import ColumnSpec, RowGroup
from hvdspark.store import Store

# How long nothing may arrive before the store counts as broken.
READ_TIMEOUT_S = 300.0
_JOIN_TIMEOUT_S = 10.0
_POLL_S = 0.1
_THREADS = 2
# On a remote store threads mostly wait.
_REMOTE_THREADS = 8
# Footers of files with many row groups are large, and a rank meets all files in random order.
_FOOTERS_KEPT = 16


class RowGroupReader:
    """Reads row groups in background threads and hands each to `sink`, which runs in those threads.

    Args:
        store, dataset: where the dataset is.
        columns: what to read.
        groups: what to read, in this order; nothing is read before `allow`.
        sink: called with the position in `groups` and the columns; calls overlap and may come out of order.
    """

    def __init__(
        self,
        store: Store,
        dataset: str,
        columns: Sequence[ColumnSpec],
        groups: Sequence[RowGroup],
        sink: Callable[[int, Columns], None],
    ) -> None:
        self._pool = _BoundedThreadPool(_THREADS if store.local_path() is not None else _REMOTE_THREADS)
        self._ventilator = _Gate(self._pool.ventilate, len(groups))
        self._pool.start(_RowGroupWorker, (store, dataset, tuple(columns), tuple(groups), sink), self._ventilator)

    def allow(self, count: int) -> None:
        """Let the first `count` row groups be read; a smaller count than before changes nothing."""
        self._ventilator.allow(count)

    def wait_for_one(self) -> int:
        """Wait until a row group that has not been reported yet has gone through `sink`; its position.

        Raises:
            StoreError: it cannot be read, or nothing arrives within READ_TIMEOUT_S.
            DataError: it is not what the dataset's spec says.
        """
        result = self._pool.get_results()
        if isinstance(result, HvdSparkError):
            raise result
        return int(result)

    def stop(self) -> None:
        """End a `wait_for_one` that another thread may be in, and all reading after the current row groups."""
        self._pool.stop()

    def join(self) -> None:
        """Wait, for a limited time, until the threads have ended. Call `stop` first."""
        self._pool.join()


class _RowGroupWorker(WorkerBase):
    """Runs in a thread of the pool."""

    def __init__(self, worker_id: int, publish_func: Callable[[Any], None], args: tuple[Any, ...]) -> None:
        super().__init__(worker_id, publish_func, args)
        self._store, self._dataset, self._columns, self._groups, self._sink = args
        self._footer = functools.lru_cache(_FOOTERS_KEPT)(lambda path: read_footer(self._store, path))

    def process(self, position: int) -> None:
        group: RowGroup = self._groups[position]
        path = f"{self._dataset}/{group.path}"
        try:
            self._sink(position, self._decode(self._read(path, group), group))
            result: Any = position
        except HvdSparkError as error:
            result = error
        except (OSError, pa.ArrowException) as error:
            result = StoreError(
                f"a row group cannot be read ({type(error).__name__}: {error})",
                value=self._store.spark_uri(path),
                hint="was the dataset deleted, or the disk full, while ranks were reading?",
            )
        except Exception as error:
            result = DataError(f"a row group cannot be decoded ({type(error).__name__}: {error})", value=path)
        self.publish_func(result)

    def _read(self, path: str, group: RowGroup) -> pa.Table:
        local = self._store.local_path(path)
        # On a remote store the columns of a row group are fetched together, in few large requests.
        with pa.memory_map(str(local)) if local is not None else self._store.open_read(path) as source:
            file = pq.ParquetFile(source, metadata=self._footer(path), pre_buffer=local is None)
            names = [column.name for column in self._columns]
            # The pool's threads and the ranks of a host are parallel enough.
            return file.read_row_group(group.index, columns=names, use_threads=False)

    def _decode(self, table: pa.Table, group: RowGroup) -> Columns:
        if table.num_rows != group.rows:
            raise DataError("a row group has changed since it was written", value=group.path)
        dense: dict[str, np.ndarray] = {}
        ragged: dict[str, RaggedRows] = {}
        for column in self._columns:
            chunks = table.column(column.name)
            array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
            if column.layout == "scalar":
                dense[column.name] = _numpy(array, column)
                continue
            values = _numpy(array.flatten(), column)
            if column.layout == "fixed":
                dense[column.name] = values.reshape(group.rows, column.width)
            else:
                offsets = array.offsets.to_numpy().astype(np.int64)
                ragged[column.name] = RaggedRows(values, offsets - offsets[0])  # flatten() begins at the first row
        return Columns(dense, ragged)


def _numpy(array: pa.Array, column: ColumnSpec) -> np.ndarray:
    if array.null_count:
        raise DataError("nulls in a dataset", value=array.null_count, where=f"column {column.name!r}")
    values = array.to_numpy(zero_copy_only=True)
    if values.dtype != column.dtype:
        raise DataError("wrong type in a dataset", value=str(values.dtype), where=f"column {column.name!r}")
    return values


class _Gate(Ventilator):
    """Petastorm's ventilator decides what the pool works on; this one lets through what it is told to."""

    def __init__(self, ventilate_fn: Callable[..., None], total: int) -> None:
        super().__init__(ventilate_fn)
        self._total, self._allowed, self._stopped = total, 0, False

    def start(self) -> None:
        return None

    def allow(self, count: int) -> None:
        while self._allowed < min(count, self._total) and not self._stopped:
            self._ventilate_fn(position=self._allowed)
            self._allowed += 1

    def processed_item(self) -> None:
        return None

    def completed(self) -> bool:
        return self._stopped or self._allowed == self._total

    def stop(self) -> None:
        self._stopped = True


class _BoundedThreadPool(ThreadPool):
    """Petastorm's pool, whose own waits last for ever when a worker hangs."""

    def get_results(self) -> Any:
        deadline = time.monotonic() + READ_TIMEOUT_S
        while not self._stop_event.is_set():
            try:
                result = self._results_queue.get(timeout=_POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"no row group arrived within {READ_TIMEOUT_S:.0f} s",
                        hint="is the store reachable from this executor?",
                    ) from None
                continue
            if not isinstance(result, VentilatedItemProcessedMessage):
                return result
        raise StoreError("reading was stopped")

    def join(self) -> None:
        for thread in self._workers:
            thread.join(_JOIN_TIMEOUT_S)
