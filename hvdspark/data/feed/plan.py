"""Which rows each rank reads in an epoch, as a pure function of the row counts.

Every rank calls `plan_epoch` with the same arguments except `rank` and gets its own part; nothing is exchanged. The
arithmetic, for T rows in all, a global batch of B rows and N ranks:

* There are S = ceil(T / B) steps on *every* rank. The global batch of step s has G(s) = B rows, the last one
  T - (S - 1) * B.
* Of a global batch of G rows, rank r takes the rows [G * r // N, G * (r + 1) // N): shares differ by at most one row,
  add up to G, and may be empty (B < N, or a short last batch). An empty share still takes part in the step.
* In an epoch rank r therefore needs R(r) = sum over s of its shares, and the R(r) add up to T.

With `shuffle`, the row groups are permuted by (seed, epoch), laid end to end, and cut into N contiguous spans of R(0),
R(1), ... rows, the *streams* of the epoch. At most N - 1 row groups are cut, so all ranks together read at most (row
groups + N - 1) times a row group, and the rows that a rank sees change from epoch to epoch. Mixing *inside* the span is
the loader's work.

Without `shuffle`, the global batch of step s is exactly the rows [s * B, s * B + G(s)) in file order for any N, and
rank r takes its contiguous share of each. Ranks then read the same row groups: that is the price of global batches
that do not depend on the world size.

An interrupted epoch continues after any of its global batches, at any world size, with the global batches of an epoch
without interruption. With `shuffle` their rows depend on the number of streams, so this number stays the world size at
which the epoch started, until it ends. N ranks that continue an epoch of M streams concatenate the streams' parts of a
batch and take their shares of that:

* N = M: each rank has its own stream, and the batches are bit for bit those of an epoch without interruption.
* N != M: a rank reads the streams that its share overlaps, at most ceil(M / N) + 1 of them, and keeps its rows of each
  batch. All ranks together read at most (M + N - 1) / M times the rest of the epoch: less than twice as much for fewer
  ranks, and for more ranks about N / M times, that is, each rank reads as much for a step as the M ranks did. Each
  stream has shuffle windows of its own in memory.
* Reading starts at the window that holds the first batch wanted, whose rows before it are read and dropped; no row
  group of an earlier window is opened.
"""

from __future__ import annotations

import itertools
import operator
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.errors import ConfigurationError

# Row groups whose rows are added up at a time.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of the row group with number `group` in the tuple of row groups. Never empty."""

    group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


class Steps(Sequence[int]):
    """Rows of each step: all steps but the last have the same number.

    Attributes:
        full, last: rows of a step before the last one, and of the last one.
    """

    def __init__(self, count: int, full: int, last: int) -> None:
        self._count, self.full, self.last = count, full, last

    @property
    def total(self) -> int:
        return self.full * (self._count - 1) + self.last if self._count else 0

    @property
    def most(self) -> int:
        return max(self.last, self.full if self._count > 1 else 0) if self._count else 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        yield from itertools.repeat(self.full, self._count - 1)
        if self._count:
            yield self.last

    @typing.overload
    def __getitem__(self, step: int) -> int: ...
    @typing.overload
    def __getitem__(self, step: slice) -> tuple[int, ...]: ...
    def __getitem__(self, step: int | slice) -> int | tuple[int, ...]:
        if isinstance(step, slice):
            return tuple(self[index] for index in range(*step.indices(self._count)))
        return self.last if range(self._count)[step] == self._count - 1 else self.full

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{self._count} steps, {self.total} rows>"


@dataclass(frozen=True, eq=False)
class StreamPlan:
    """A stream of an epoch, and which of its rows one rank takes. A few bytes for each row group, nothing for a step.

    Attributes:
        batch_rows: rows of the stream's part of each batch, which may be 0; those of `skipped` batches are not wanted.
        skipped: number of batches at the start that are drawn and dropped, because they were consumed before.
        full, last: the rank takes the rows [low, high) of the stream's part of each batch, and of the last batch.
    """

    batch_rows: Steps
    skipped: int
    full: tuple[int, int]
    last: tuple[int, int]
    _row_counts: NDArray[Any]
    _order: NDArray[Any]  # numbers of row groups, laid end to end
    _before: int  # rows of the epoch before the first of these row groups
    _spans: Iterable[tuple[int, int]]  # the stream's rows, as rows of the epoch

    def ranges(self, start: int = 0) -> Iterator[RowRange]:
        """The stream's rows from row `start` on, in the order of its batches (before any shuffle window)."""
        spans = _after(self._spans, start)
        first = next(spans, None)
        if first is None:
            return iter(())
        order, before = _part(self._row_counts, self._order, first[0], None, self._before)
        return _cut(self._row_counts, order, before, itertools.chain([first], spans))

    def taken(self, step: int) -> tuple[int, int]:
        """The rows [low, high) of the stream's part of batch `step` that the rank takes."""
        return self.last if step == len(self.batch_rows) - 1 else self.full


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """What one rank reads in an epoch, or in the rest of one.

    Attributes:
        batch_rows: rows of this rank's part of each step's global batch; may be 0.
        global_rows: rows of each step's whole global batch; the same on every rank, never 0.
        streams: where the rank's rows come from: its part of a batch is what it takes of each, one after the other.
            Empty where all its batches are.
    """

    batch_rows: Steps
    global_rows: Steps
    streams: tuple[StreamPlan, ...]


def plan_epoch(
    row_counts: Sequence[int] | NDArray[Any],
    batch_size: int,
    world_size: int,
    rank: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    start_row: int = 0,
    streams: int | None = None,
) -> EpochPlan:
    """Plan one rank's part of one epoch, or of the rest of it.

    Args:
        row_counts: rows of each row group, in file order; zeros are allowed.
        batch_size: rows of the global batch, at least 1.
        world_size, rank: number of ranks and this rank in [0, world_size).
        seed, epoch: any integer seed and the epoch's number; only the order of the row groups depends on them.
        shuffle: see the module's docstring.
        start_row: rows of the epoch that were consumed: those of k global batches, min(k * batch_size, all rows).
        streams: the world size at which the epoch started, if it was another; without `shuffle` it has no effect.

    Raises:
        ConfigurationError: an argument is out of range.
    """
    if batch_size < 1:
        raise ConfigurationError("batch size must be at least 1 row", value=batch_size, where="batch_size")
    if not 0 <= rank < world_size:
        raise ConfigurationError("rank is outside the world", value=rank, where=f"a world of {world_size} ranks")
    dealt = world_size if streams is None else streams
    if dealt < 1:
        raise ConfigurationError("an epoch has at least 1 stream", value=dealt, where="streams")
    counts = np.asarray(row_counts) if len(row_counts) else np.zeros(0, np.int64)
    if counts.min(initial=0) < 0:
        raise ConfigurationError("a row group cannot have a negative number of rows", value=int(counts.min()))
    total = int(counts.sum(dtype=np.int64))
    steps = -(-total // batch_size)
    if not (0 <= start_row < total and start_row % batch_size == 0) and start_row != total:
        raise ConfigurationError(
            "an epoch can continue only after a whole global batch",
            value=start_row,
            where=f"start_row, with {total} rows in batches of {batch_size}",
        )
    done = -(-start_row // batch_size)
    last = total - (steps - 1) * batch_size if steps else 0
    global_rows = Steps(steps, batch_size, last)
    shares = _rows(_share(batch_size, world_size, rank)), _rows(_share(last, world_size, rank))
    batch_rows, rest = Steps(steps - done, *shares), Steps(steps - done, batch_size, last)
    if not batch_rows.total:
        return EpochPlan(batch_rows, rest, ())
    numbers = np.arange(len(counts), dtype=np.min_scalar_type(len(counts)))
    if not shuffle:
        order, before = _part(counts, numbers, start_row, None)
        spans = _Shares(rest, world_size, rank, start_row)
        own = StreamPlan(batch_rows, 0, (0, shares[0]), (0, shares[1]), counts, order, before, spans)
        return EpochPlan(batch_rows, rest, (own,))
    order = np.random.default_rng([seed % 2**64, epoch]).permutation(numbers)
    taken = []
    for stream in range(dealt):
        full_rows, last_rows = (
            _overlap(_share(rows, dealt, stream), _share(rows, world_size, rank)) for rows in (batch_size, last)
        )
        if _rows(last_rows) or (_rows(full_rows) and steps - done > 1):
            taken.append(_stream(counts, order, global_rows, dealt, stream, done, full_rows, last_rows))
    return EpochPlan(batch_rows, rest, tuple(taken))


def _stream(
    counts: NDArray[Any],
    order: NDArray[Any],
    global_rows: Steps,
    streams: int,
    stream: int,
    done: int,
    full: tuple[int, int],
    last: tuple[int, int],
) -> StreamPlan:
    """One of the streams that the row groups, laid end to end in an order, are cut into."""
    (start, stop), (last_start, last_stop) = (
        _share(rows, streams, stream) for rows in (global_rows.full, global_rows.last)
    )
    batch_rows = Steps(len(global_rows), stop - start, last_stop - last_start)
    # Every full batch has the same shares, so what the streams before this one need is two products.
    first = (len(global_rows) - 1) * start + last_start
    end = first + batch_rows.total
    kept, before = _part(counts, order, first, end)
    return StreamPlan(batch_rows, done, full, last, counts, kept, before, [(first, end)])


class _Shares(Iterable[tuple[int, int]]):
    """A rank's share of each global batch, as rows of the epoch; the first batch starts at row `first`."""

    def __init__(self, global_rows: Steps, world_size: int, rank: int, first: int) -> None:
        self._global_rows, self._world_size, self._rank, self._first = global_rows, world_size, rank, first

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self._first
        for rows in self._global_rows:
            start, stop = _share(rows, self._world_size, self._rank)
            yield first + start, first + stop
            first += rows


def _share(rows: int, world_size: int, rank: int) -> tuple[int, int]:
    return rows * rank // world_size, rows * (rank + 1) // world_size


def _rows(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _overlap(stream: tuple[int, int], mine: tuple[int, int]) -> tuple[int, int]:
    """The part of a stream's share that is in mine, counted from the beginning of the stream's share."""
    low, high = max(stream[0], mine[0]) - stream[0], min(stream[1], mine[1]) - stream[0]
    return (low, high) if low < high else (0, 0)


def _after(spans: Iterable[tuple[int, int]], rows: int) -> Iterator[tuple[int, int]]:
    """The spans without their first `rows` rows."""
    for start, stop in spans:
        dropped = min(rows, stop - start)
        rows -= dropped
        if start + dropped < stop:
            yield start + dropped, stop


def _part(
    counts: NDArray[Any], order: NDArray[Any], start: int, stop: int | None, before: int = 0
) -> tuple[NDArray[Any], int]:
    """Of row groups laid end to end in an order: those with rows [start, stop), and the rows of the epoch before them.

    Args:
        stop: None is the end.
        before: rows of the epoch before all of them.
    """
    kept: list[NDArray[Any]] = []
    skipped = position = before
    for block in range(0, len(order), _BLOCK):
        numbers = order[block : block + _BLOCK]
        ends = position + np.cumsum(counts[numbers], dtype=np.int64)
        low = int(np.searchsorted(ends, start, side="right"))
        high = len(numbers) if stop is None else int(np.searchsorted(ends, stop, side="left")) + 1
        if low < high and low < len(numbers):
            if not kept:
                skipped = int(ends[low - 1]) if low else position
            kept.append(numbers[low:high])
        position = int(ends[-1])
        if stop is not None and position >= stop:
            break
    return (np.concatenate(kept) if kept else order[:0]), skipped


def _cut(
    row_counts: NDArray[Any], order: NDArray[Any], before: int, spans: Iterable[tuple[int, int]]
) -> Iterator[RowRange]:
    """The given spans (ascending, disjoint) of the row groups laid end to end in the given order, behind other rows."""
    groups = iter(order)
    group, group_start, group_stop = -1, before, before
    pending: RowRange | None = None
    for span_start, span_stop in spans:
        position = span_start
        while position < span_stop:
            while group_stop <= position:
                group = int(next(groups))
                group_start, group_stop = group_stop, group_stop + int(row_counts[group])
            stop = min(span_stop, group_stop)
            piece = RowRange(group, position - group_start, stop - group_start)
            if pending is not None and (pending.group, pending.stop) == (piece.group, piece.start):
                piece = RowRange(group, pending.start, piece.stop)  # spans that touch make one range
            elif pending is not None:
                yield pending
            pending, position = piece, stop
    if pending is not None:
        yield pending
