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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hvdspark.errors import ConfigurationError


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of the row group with number `group` in the tuple of row groups. Never empty."""

    group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class EpochPlan:
    """What one rank reads in one epoch.

    Attributes:
        ranges: the rank's rows, in the order in which batches take them (before the loader's shuffle window).
        batch_rows: rows of this rank's part of each step's global batch; may be 0.
        global_rows: rows of each step's whole global batch; the same on every rank, never 0.
    """

    ranges: tuple[RowRange, ...]
    batch_rows: tuple[int, ...]
    global_rows: tuple[int, ...]


def plan_epoch(
    row_counts: Sequence[int],
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
    if any(count < 0 for count in row_counts):
        raise ConfigurationError("a row group cannot have a negative number of rows", value=min(row_counts))
    total = sum(row_counts)
    steps = -(-total // batch_size)
    global_rows = tuple(min(batch_size, total - step * batch_size) for step in range(steps))
    bounds = [_share(rows, world_size, rank) for rows in global_rows]
    batch_rows = tuple(stop - start for start, stop in bounds)
    if shuffle:
        # Every full batch has the same shares, so what the ranks before this one need is two products.
        full, last = (steps - 1, global_rows[-1]) if steps else (0, 0)
        first = full * _share(batch_size, world_size, rank)[0] + _share(last, world_size, rank)[0]
        spans = [(first, first + sum(batch_rows))]
        order = np.random.default_rng([seed % 2**64, epoch]).permutation(len(row_counts)).tolist()
    else:
        spans = [(step * batch_size + start, step * batch_size + stop) for step, (start, stop) in enumerate(bounds)]
        order = list(range(len(row_counts)))
    return EpochPlan(tuple(_cut(row_counts, order, spans)), batch_rows, global_rows)


def _share(rows: int, world_size: int, rank: int) -> tuple[int, int]:
    return rows * rank // world_size, rows * (rank + 1) // world_size


def _cut(row_counts: Sequence[int], order: Sequence[int], spans: Sequence[tuple[int, int]]) -> Iterator[RowRange]:
    """The given spans (ascending, disjoint) of the row groups laid end to end in the given order."""
    groups = iter(order)
    group, group_start, group_stop = -1, 0, 0
    pending: RowRange | None = None
    for span_start, span_stop in spans:
        position = span_start
        while position < span_stop:
            while group_stop <= position:
                group = next(groups)
                group_start, group_stop = group_stop, group_stop + row_counts[group]
            stop = min(span_stop, group_stop)
            piece = RowRange(group, position - group_start, stop - group_start)
            if pending is not None and (pending.group, pending.stop) == (piece.group, piece.start):
                piece = RowRange(group, pending.start, piece.stop)  # spans that touch make one range
            elif pending is not None:
                yield pending
            pending, position = piece, stop
    if pending is not None:
        yield pending
