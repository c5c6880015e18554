"""Batches of a rank: Parquet -> row groups (a reader's threads) -> windows -> batches, all ahead of the training step.

A stream of rows, as `plan` orders it, is cut into windows of whole batches. Threads decode row groups, slice by
slice, and put their rows into the windows they belong to; so it does not matter which thread is first, and the result
depends on (plan, seed, epoch) alone. Once a window is complete, its batches are drawn (see `window`), while the next
one is being filled. With a window at least as large as the rank's part, that is a full shuffle; otherwise rows mix
inside the window, and windows hold different row groups each epoch.

A rank reads one stream. While it continues an epoch that started at another world size it may read several, and
concatenates what it takes of each batch.

Memory for each rank, whatever the number of rows: three windows (at most 128 MiB each; two more for each stream beyond
the first), a slice for each reading thread, and the batches ahead.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hvdspark.data.feed.batch import Batch, Layout, Ragged
from hvdspark.data.feed.plan import EpochPlan
from hvdspark.data.feed.stream import Stream, WindowPlan
from hvdspark.data.feed.window import Window
from hvdspark.data.readers import open_reader
from hvdspark.data.readers.protocol import Columns, OpenReader, Piece, RowGroupReader, Sink
from hvdspark.errors import ConfigurationError
from hvdspark.specs import ColumnSpec, DatasetSpec
from hvdspark.store import Store

__all__ = ["Batch", "Ragged", "load_batches"]

_WINDOW_BYTES = 128 << 20
# Without shuffling a window only carries rows from the row groups to the batches.
_PLAIN_WINDOW_ROWS = 1 << 16
_POLL_S = 0.1
_JOIN_TIMEOUT_S = 15.0


@contextlib.contextmanager
def load_batches(
    store: Store,
    dataset: DatasetSpec,
    split: str,
    plan: EpochPlan,
    columns: Sequence[str],
    *,
    shuffle_rows: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    prefetch: int = 4,
    pin: bool = False,
    reader: OpenReader = open_reader,
) -> Iterator[Iterator[Batch]]:
    """Read one rank's batches of one epoch.

    Args:
        store, dataset: what to read.
        split: "train" or "validation".
        plan: the rank's plan for this split, of an epoch or of the rest of one; batch s has plan.batch_rows[s] rows,
            and may have none.
        columns: names of the columns to read; a column that is named twice is read once.
        shuffle_rows: rows that are permuted together, at most (but at least one batch); fewer if they would take more
            than 128 MiB.
        seed, epoch: what the permutation depends on.
        shuffle: whether to permute at all.
        prefetch: batches that are kept ready.
        pin: whether batches are put into page-locked memory, for copies to this rank's GPU; it takes memory on a GPU.
        reader: makes what reads the row groups of a stream.

    Yields:
        An iterator of len(plan.batch_rows) batches. Closing the context early ends all threads.

    Raises:
        ConfigurationError: an unknown split or column.
        StoreError, DataError: from the iterator: the files cannot be read, or are not what the spec says.
    """
    groups = {"train": dataset.train, "validation": dataset.validation}.get(split)
    if groups is None:
        raise ConfigurationError("unknown split", value=split, hint="'train' or 'validation'")
    by_name = {column.name: column for column in dataset.columns}
    if unknown := [name for name in columns if name not in by_name]:
        raise ConfigurationError("the dataset has no such column", value=unknown, hint=f"it has {', '.join(by_name)}")
    specs = [by_name[name] for name in dict.fromkeys(columns)]
    layout = Layout.of(specs)
    row_bytes = max(layout.row_bytes, dataset.row_bytes, 1)
    limit = max(1, min(shuffle_rows if shuffle else _PLAIN_WINDOW_ROWS, _WINDOW_BYTES // row_bytes))
    entropy = [seed % 2**64, epoch] if shuffle else None
    streams = [Stream(specs, groups, part, limit) for part in plan.streams]
    sources = [_Source(stream, functools.partial(reader, store, dataset.path), entropy) for stream in streams]
    prefetcher = _Prefetcher(sources, layout, len(plan.batch_rows), prefetch, pin)
    try:
        yield prefetcher.batches()
    finally:
        prefetcher.close()


class _Source:
    """What a rank takes of the batches of one stream. `batches` is for one thread, `stop` and `join` for another."""

    def __init__(
        self,
        stream: Stream,
        reader: Callable[[Sequence[ColumnSpec], Sink], RowGroupReader],
        entropy: Sequence[int] | None,
    ) -> None:
        self._stream, self._entropy = stream, entropy
        self._windows: dict[int, Window] = {}
        self._missing: dict[int, int] = {}  # rows of a window that have not come yet
        self._lock = threading.Lock()
        self._reader = reader(stream.columns, self._accept)

    def batches(self) -> Iterator[Batch]:
        windows = self._stream.windows()
        current = self._begin(windows)
        while current is not None:
            following = self._begin(windows)  # is filled while this one is drained
            while self._missing[current.number]:
                for piece in self._reader.wait_for_one():
                    self._missing[piece.window] -= piece.stop - piece.start
            window = self._window(current.number)
            yield from window.batches(current.batches, self._rng(current.number, 0), current.taken)
            with self._lock:
                self._windows.pop(current.number).close()
            del self._missing[current.number]
            current = following

    def stop(self) -> None:
        """End all waits of `batches`, and all reading soon."""
        self._reader.stop()

    def join(self) -> None:
        """Wait until reading has ended. Call `stop` first."""
        self._reader.join()

    def _begin(self, windows: Iterator[WindowPlan]) -> WindowPlan | None:
        """Have the next window read."""
        window = next(windows, None)
        if window is not None:
            self._missing[window.number] = window.rows
            for group, pieces in window.reads:
                self._reader.read(group, pieces)
        return window

    def _accept(self, piece: Piece, columns: Columns, first: int) -> None:
        """Runs in the reader's threads."""
        # A generator for each piece: the result does not depend on which thread comes first.
        rng = self._rng(piece.window, piece.at + 1)
        self._window(piece.window).fill(piece.at, columns, piece.start - first, piece.stop - first, rng)

    def _window(self, number: int) -> Window:
        with self._lock:
            if number not in self._windows:
                self._windows[number] = Window(self._stream.layout, self._stream.capacity)
            return self._windows[number]

    def _rng(self, window: int, use: int) -> np.random.Generator | None:
        return None if self._entropy is None else np.random.default_rng([*self._entropy, window, use])


class _Prefetcher:
    """Keeps a queue of batches filled from a thread of its own."""

    def __init__(self, sources: Sequence[_Source], layout: Layout, steps: int, prefetch: int, pin: bool) -> None:
        self._sources, self._layout, self._steps, self._pin = sources, layout, steps, pin
        self._stop = threading.Event()
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(max(1, prefetch))
        self._thread = threading.Thread(target=self._run, name="hvdspark-prefetch", daemon=True)
        self._thread.start()

    def batches(self) -> Iterator[Batch]:
        for _ in range(self._steps):
            item = self._next()
            if isinstance(item, Exception):
                raise item
            yield item

    def close(self) -> None:
        self._stop.set()
        for source in self._sources:
            source.stop()
        self._thread.join(_JOIN_TIMEOUT_S)
        for source in self._sources:
            source.join()

    def _next(self) -> Batch | Exception:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                # The thread limits its own waits, so it either brings something or ends.
                if not self._thread.is_alive() and self._queue.empty():
                    break
        raise RuntimeError("batches were asked for after the loader was closed")

    def _run(self) -> None:
        try:
            parts = [source.batches() for source in self._sources]
            for _ in range(self._steps):
                batch = Batch.joined(self._layout, [next(part) for part in parts])
                if not self._put(batch.pin_memory() if self._pin else batch):
                    return
            for part in parts:
                next(part, None)  # the last window gives its memory back
        except Exception as error:
            self._put(error)

    def _put(self, item: Batch | Exception) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
