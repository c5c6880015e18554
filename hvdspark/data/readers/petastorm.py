"""Reading row groups through Petastorm's worker pool, in an order of our own.

This is one level below `petastorm.make_batch_reader`: the same `ThreadPool`, running a `WorkerBase` that reads one row
group with pyarrow. Petastorm's `Reader` is left out, because on every rank it lists the directory and reads all footers
again, deals whole row groups to ranks once and for all (and fails with fewer row groups than ranks) and takes seed 0
for no seed; its `ArrowReaderWorker`, because it opens each file and parses its footer twice for each row group, holds
the whole row group, and results go through pandas, where a list column becomes a loop over rows. Here `plan` decides
what a rank reads, and columns are handed on as they come out of Parquet.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from petastorm.workers_pool import VentilatedItemProcessedMessage
from petastorm.workers_pool.thread_pool import ThreadPool
from petastorm.workers_pool.worker_base import WorkerBase

from hvdspark.data.dataset.footers import read_footer
from hvdspark.data.readers.protocol import Piece, Sink
from hvdspark.data.readers.slices import columns_of, errors_named, names_in_files, read_slices
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
# Footers of files with many row groups are large, and a rank reads from all files in random order.
_FOOTERS_KEPT = 16


class PetastormReader:
    """A `protocol.RowGroupReader` whose threads are those of Petastorm's pool; the sink runs in them.

    What a thread holds is bounded by the slice, however many rows a row group has, and reading stops after any slice
    until more of the row group is asked for.

    Args:
        store, dataset: where the dataset is.
        columns: what to read.
        sink: see `protocol.Sink`.
    """

    def __init__(self, store: Store, dataset: str, columns: Sequence[ColumnSpec], sink: Sink) -> None:
        self._stopped = threading.Event()
        self._pool = _BoundedThreadPool(_THREADS if store.local_path() is not None else _REMOTE_THREADS)
        footer = functools.lru_cache(_FOOTERS_KEPT)(lambda path: read_footer(store, path))
        self._pool.start(_RowGroupWorker, (store, dataset, tuple(columns), footer, sink, self._stopped))
        self._last: _Read | None = None

    def read(self, group: RowGroup, pieces: Sequence[Piece]) -> None:
        last = self._last
        if last is None or (last.opened.group.path, last.opened.group.index) != (group.path, group.index):
            self._last = _Read(_OpenGroup(group), 0, pieces)
        else:
            self._last = _Read(last.opened, last.turn + 1, pieces)
        self._pool.ventilate(read=self._last)

    def wait_for_one(self) -> Sequence[Piece]:
        result = self._pool.get_results()
        if isinstance(result, HvdSparkError):
            raise result
        pieces: Sequence[Piece] = result
        return pieces

    def stop(self) -> None:
        self._stopped.set()
        self._pool.stop()

    def join(self) -> None:
        self._pool.join()
        if self._last is not None:
            self._last.opened.close()


class _OpenGroup:
    """A row group between its first and its last read, which take turns.

    Attributes:
        turn: number of the read that may go on.
        slices: what is still to be decoded; None before the first read.
        first, rows: the slice that was decoded last, as rows of the row group.
    """

    def __init__(self, group: RowGroup) -> None:
        self.group = group
        self.slices: Iterator[pa.RecordBatch] | None = None
        self.batch: pa.RecordBatch | None = None
        self.first = self.rows = 0
        self.turn = 0
        self._changed = threading.Condition()

    def wait_for(self, turn: int, stopped: threading.Event) -> bool:
        """Whether it is the read's turn; False if it will never be."""
        with self._changed:
            while self.turn < turn:
                if stopped.is_set():
                    return False
                self._changed.wait(_POLL_S)
        return True

    def end_turn(self) -> None:
        with self._changed:
            self.turn += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Close the file of a row group that was not read to its end."""
        slices, self.slices, self.batch = self.slices, None, None
        if isinstance(slices, Generator):
            with contextlib.suppress(ValueError):  # a thread that did not end in time is in it
                slices.close()

    def advance_to(self, row: int) -> None:
        """Decode slices up to the one with this row."""
        assert self.slices is not None
        while self.first + self.rows <= row:
            self.first += self.rows
            self.batch = next(self.slices, None)
            if self.batch is None:
                raise DataError("a row group has fewer rows than its footer says", value=self.group.path)
            self.rows = self.batch.num_rows


@dataclass(frozen=True)
class _Read:
    """The read number `turn` of a row group."""

    opened: _OpenGroup
    turn: int
    pieces: Sequence[Piece]


class _RowGroupWorker(WorkerBase):
    """Runs in a thread of the pool."""

    def __init__(self, worker_id: int, publish_func: Callable[[Any], None], args: tuple[Any, ...]) -> None:
        super().__init__(worker_id, publish_func, args)
        self._store, self._dataset, self._columns, self._footer, self._sink, self._stopped = args

    def process(self, read: _Read) -> None:
        opened = read.opened
        path = f"{self._dataset}/{opened.group.path}"
        if not opened.wait_for(read.turn, self._stopped):
            return
        try:
            with errors_named(self._store, path):
                if opened.slices is None:
                    names = names_in_files(self._columns)
                    opened.slices = read_slices(self._store, path, opened.group, self._footer(path), names)
                self._deliver(opened, read.pieces)
            result: Sequence[Piece] | HvdSparkError = read.pieces
        except HvdSparkError as error:
            result = error
        opened.end_turn()
        self.publish_func(result)

    def _deliver(self, opened: _OpenGroup, pieces: Sequence[Piece]) -> None:
        decoded, columns = None, None
        for piece in pieces:
            start = piece.start
            while start < piece.stop and not self._stopped.is_set():
                opened.advance_to(start)
                if columns is None or decoded is not opened.batch:
                    decoded, columns = opened.batch, columns_of(opened.batch, self._columns)
                stop = min(piece.stop, opened.first + opened.rows)
                self._sink(Piece(start, stop, piece.window, piece.at + start - piece.start), columns, opened.first)
                start = stop


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
