"""Which rows each rank reads in an epoch, as a pure function of the row counts.

Every rank calls `plan_epoch` with the same arguments except `rank` and gets its own part; nothing is exchanged. The
arithmetic, for T rows in all, a global batch of B rows and N ranks:

* There are S = ceil(T / B) steps on *every* rank. The global batch of step s has G(s) = B rows, the last one
  T - (S - 1) * B.
* Of a global batch of G rows, rank r takes the rows [G * r // N, G * (r + 1) // N): shares differ by at most one row,
  add up to G, and may be empty (B < N, or a short last batch). An empty share still takes part in the step.
* In an epoch rank r therefore needs R(r) = sum over s of its shares, and the R(r) add up to T.

With `shuffle`, the row groups are permuted by (seed, epoch), laid end to end, and cut into N contiguous spans of R(0),
R(1), ... rows. At most N - 1 row groups are cut, so all ranks together read at most (row groups + N - 1) times a row
group, and the rows that a rank sees change from epoch to epoch. Mixing *inside* the span is the loader's work.

Without `shuffle`, the global batch of step s is exactly the rows [s * B, s * B + G(s)) in file order for any N, and
rank r takes its contiguous share of each. Ranks then read the same row groups: that is the price of global batches
that do not depend on the world size.
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
    """Rows of each step: all steps but the last have the same number."""

    def __init__(self, count: int, full: int, last: int) -> None:
        self._count, self._full, self._last = count, full, last

    @property
    def total(self) -> int:
        return self._full * (self._count - 1) + self._last if self._count else 0

    @property
    def most(self) -> int:
        return max(self._last, self._full if self._count > 1 else 0) if self._count else 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        yield from itertools.repeat(self._full, self._count - 1)
        if self._count:
            yield self._last

    @typing.overload
    def __getitem__(self, step: int) -> int: ...
    @typing.overload
    def __getitem__(self, step: slice) -> tuple[int, ...]: ...
    def __getitem__(self, step: int | slice) -> int | tuple[int, ...]:
        if isinstance(step, slice):
            return tuple(self[index] for index in range(*step.indices(self._count)))
        return self._last if range(self._count)[step] == self._count - 1 else self._full

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{self._count} steps, {self.total} rows>"


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """What one rank reads in one epoch. It takes a few bytes for each row group of the rank, and nothing for a step.

    Attributes:
        batch_rows: rows of this rank's part of each step's global batch; may be 0.
        global_rows: rows of each step's whole global batch; the same on every rank, never 0.
    """

    batch_rows: Steps
    global_rows: Steps
    _row_counts: NDArray[Any]
    _order: Sequence[int] | NDArray[Any]
    _spans: Iterable[tuple[int, int]]

    @property
    def ranges(self) -> Iterator[RowRange]:
        """The rank's rows, in the order in which batches take them (before the loader's shuffle window)."""
        return _cut(self._row_counts, self._order, self._spans)


def plan_epoch(
    row_counts: Sequence[int] | NDArray[Any],
    batch_size: int,
    world_size: int,
    rank: int,
    seed: int,
    epoch: int,
    shuffle: bool,
) -> EpochPlan:
    """Plan one rank's part of one epoch.

    Args:
        row_counts: rows of each row group, in file order; zeros are allowed.
        batch_size: rows of the global batch, at least 1.
        world_size, rank: number of ranks and this rank in [0, world_size).
        seed, epoch: any integer seed and the epoch's number; only the order of the row groups depends on them.
        shuffle: see the module's docstring.

    Raises:
        ConfigurationError: an argument is out of range.
    """
    if batch_size < 1:
        raise ConfigurationError("batch size must be at least 1 row", value=batch_size, where="batchSize")
    if not 0 <= rank < world_size:
        raise ConfigurationError("rank is outside the world", value=rank, where=f"a world of {world_size} ranks")
    counts = np.asarray(row_counts) if len(row_counts) else np.zeros(0, np.int64)
    if counts.min(initial=0) < 0:
        raise ConfigurationError("a row group cannot have a negative number of rows", value=int(counts.min()))
    total = int(counts.sum(dtype=np.int64))
    steps = -(-total // batch_size)
    last = total - (steps - 1) * batch_size if steps else 0
    (start, stop), (last_start, last_stop) = _share(batch_size, world_size, rank), _share(last, world_size, rank)
    batch_rows = Steps(steps, stop - start, last_stop - last_start)
    global_rows = Steps(steps, batch_size, last)
    if not shuffle:
        return EpochPlan(batch_rows, global_rows, counts, range(len(counts)), _Shares(global_rows, world_size, rank))
    # Every full batch has the same shares, so what the ranks before this one need is two products.
    first = max(steps - 1, 0) * start + last_start
    numbers = np.arange(len(counts), dtype=np.min_scalar_type(len(counts)))
    order = np.random.default_rng([seed % 2**64, epoch]).permutation(numbers)
    order, skipped = _part(counts, order, first, first + batch_rows.total)
    spans = [(first - skipped, first - skipped + batch_rows.total)]
    return EpochPlan(batch_rows, global_rows, counts, order, spans)


class _Shares(Iterable[tuple[int, int]]):
    """A rank's share of each global batch, as rows of the epoch."""

    def __init__(self, global_rows: Steps, world_size: int, rank: int) -> None:
        self._global_rows, self._world_size, self._rank = global_rows, world_size, rank

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = 0
        for rows in self._global_rows:
            start, stop = _share(rows, self._world_size, self._rank)
            yield first + start, first + stop
            first += rows


def _share(rows: int, world_size: int, rank: int) -> tuple[int, int]:
    return rows * rank // world_size, rows * (rank + 1) // world_size


def _part(counts: NDArray[Any], order: NDArray[Any], start: int, stop: int) -> tuple[NDArray[Any], int]:
    """Of row groups laid end to end in an order: those with rows [start, stop), and the rows before them."""
    kept: list[NDArray[Any]] = []
    skipped = position = 0
    for block in range(0, len(order), _BLOCK):
        numbers = order[block : block + _BLOCK]
        ends = position + np.cumsum(counts[numbers], dtype=np.int64)
        before = int(np.searchsorted(ends, start, side="right"))
        behind = int(np.searchsorted(ends, stop, side="left")) + 1
        if before < behind and before < len(numbers):
            if not kept:
                skipped = int(ends[before - 1]) if before else position
            kept.append(numbers[before:behind])
        position = int(ends[-1])
        if position >= stop:
            break
    return (np.concatenate(kept) if kept else order[:0]), skipped


def _cut(
    row_counts: NDArray[Any], order: Sequence[int] | NDArray[Any], spans: Iterable[tuple[int, int]]
) -> Iterator[RowRange]:
    """The given spans (ascending, disjoint) of the row groups laid end to end in the given order."""
    groups = iter(order)
    group, group_start, group_stop = -1, 0, 0
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
