"""Windows of rows, and the shuffle: whole columns at a time, never row by row.

A window holds its rows in chunks of at most 65 536. Each chunk is permuted when it comes in, while its columns fit into
the processor's cache; a batch then takes the next rows of every chunk, in numbers drawn from the multivariate
hypergeometric distribution. So the rows of the window are dealt to batches exactly as by one permutation of the whole
window, at the price of a gather inside the cache and a few large copies. (Inside a batch, rows of one chunk stand
together. For a mean over the batch that is no order at all.)

Permuting 40 whole columns of a large window instead means 40 cache misses for each row: 4 times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvdspark.data.feed.batch import Batch, Layout, Ragged
from hvdspark.data.readers.protocol import Columns, RaggedRows


class Window:
    """A stretch of a rank's stream: filled by several threads in any order, then drawn from, batch by batch.

    Args:
        layout: of the columns.
        capacity: rows it can hold.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        self._layout = layout
        self._buffers = _spare.take(layout, capacity) or [block.numpy() for block in layout.allocate(capacity)]
        self._chunks: dict[int, int] = {}  # where a chunk starts, and its rows
        self._ragged: dict[int, dict[str, RaggedRows]] = {}

    def fill(self, at: int, columns: Columns, start: int, stop: int, rng: np.random.Generator | None) -> None:
        """Put rows [start, stop) of the columns at row `at`; at least one row, at most `slices.MAX_CHUNK_ROWS`.

        They are permuted if there is a generator.
        """
        rows = stop - start
        order = None if rng is None else rng.permutation(rows)
        targets: dict[str, NDArray[Any]] = {}
        for (_, names), buffer in zip(self._layout.scalars, self._buffers, strict=False):
            targets |= {name: line[at : at + rows] for name, line in zip(names, buffer, strict=True)}
        for (name, _, _), buffer in zip(self._layout.fixed, self._buffers[len(self._layout.scalars) :], strict=True):
            targets[name] = buffer[at : at + rows]
        for name, target in targets.items():
            source = columns.dense[name][start:stop]
            if order is None:
                target[:] = source
            else:  # "clip" spares a copy of the result; our indexes are in range
                np.take(source, order, axis=0, out=target, mode="clip")
        ragged = {name: columns.ragged[name].rows(start, stop) for name, _ in self._layout.ragged}
        if order is not None:
            ragged = {name: part.take(order) for name, part in ragged.items()}
        self._ragged[at] = ragged
        self._chunks[at] = rows

    def batches(
        self,
        rows: Sequence[int],
        rng: np.random.Generator | None,
        taken: Sequence[tuple[int, int] | None] | None = None,
    ) -> Iterator[Batch]:
        """Batches of these numbers of rows, which share no memory with the window.

        With a generator they mix all chunks, otherwise they are the window's rows in order. Call it when the window
        is full.

        Args:
            taken: of each batch only the rows [low, high) are given, and with None the batch is left out. What the
                other batches hold does not depend on it. By default all rows of all batches are given.
        """
        starts = np.array(sorted(self._chunks), np.int64)
        ends = starts + np.array([self._chunks[start] for start in starts.tolist()], np.int64)
        used = starts.copy()
        for count, span in zip(rows, taken or [(0, count) for count in rows], strict=True):
            left = ends - used
            if rng is not None and count:
                counts = rng.multivariate_hypergeometric(left, count)
            else:
                before = np.cumsum(left) - left
                counts = np.clip(count - before, 0, left)
            if span is not None:
                low, high = (used + np.clip(row - (np.cumsum(counts) - counts), 0, counts) for row in span)
                parts = [
                    part for part in zip(starts.tolist(), low.tolist(), high.tolist(), strict=True) if part[1] < part[2]
                ]
                yield self._collect(span[1] - span[0], parts)
            used += counts

    def close(self) -> None:
        """Hand the memory on to the next window. Nobody may use this one any more."""
        _spare.put(self._layout, self._buffers)

    def _collect(self, rows: int, parts: Sequence[tuple[int, int, int]]) -> Batch:
        """The rows [low, high) of the window for each (start of the chunk, low, high)."""
        blocks = []
        scalar_blocks = len(self._layout.scalars)
        for number, buffer in enumerate(self._buffers):
            is_scalar = number < scalar_blocks
            block = np.empty((len(buffer), rows) if is_scalar else (rows, buffer.shape[1]), buffer.dtype)
            at = 0
            for _, low, high in parts:
                if is_scalar:
                    block[:, at : at + high - low] = buffer[:, low:high]
                else:
                    block[at : at + high - low] = buffer[low:high]
                at += high - low
            blocks.append(torch.from_numpy(block))
        ragged = {}
        for name, dtype in self._layout.ragged:
            chosen = [self._ragged[start][name].rows(low - start, high - start) for start, low, high in parts]
            ragged[name] = Ragged.joined([(part.values, part.offsets) for part in chosen], dtype)
        return Batch.of_blocks(self._layout, blocks, ragged, rows)


class _Spare:
    """Memory of the last few windows of the process: fresh memory costs half as much as filling it."""

    _KEPT = 3

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sets: list[tuple[Layout, list[NDArray[Any]]]] = []

    def take(self, layout: Layout, capacity: int) -> list[NDArray[Any]] | None:
        with self._lock:
            for index, (other, buffers) in enumerate(self._sets):
                if other == layout and _capacity(layout, buffers) >= capacity:
                    return self._sets.pop(index)[1]
        return None

    def put(self, layout: Layout, buffers: list[NDArray[Any]]) -> None:
        with self._lock:
            self._sets = [*self._sets, (layout, buffers)][-self._KEPT :]


_spare = _Spare()


def _capacity(layout: Layout, buffers: Sequence[NDArray[Any]]) -> int:
    return min(
        (buffer.shape[1 if index < len(layout.scalars) else 0] for index, buffer in enumerate(buffers)), default=0
    )
