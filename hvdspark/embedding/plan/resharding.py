"""Which rank owns which run of buckets when a run goes on with other ranks: that which its host has most of. Pure.

The 4096 buckets are cut into as many equal runs as there are ranks. Which rank gets which of them changes no result,
but how many bytes have to come from the store: a rank reads from there what its host has not kept of the ranks before.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.ids.hashing import bucket_range

FloatArray = NDArray[np.float64]


def bytes_by_run(files: Iterable[tuple[int, int, int]], world_size: int) -> FloatArray:
    """Bytes of the files that the owner of each run reads: float64 [world_size].

    Args:
        files: (first bucket, bucket after the last, bytes) of each. A file is read whole.
    """
    of_runs = np.zeros(world_size)
    edges = [bucket_range(run, world_size) for run in range(world_size)]
    firsts, stops = (np.array(side) for side in zip(*edges, strict=True))
    for first, stop, size in files:
        of_runs[(firsts < stop) & (first < stops)] += size
    return of_runs


def runs_of_ranks(at_hand: FloatArray) -> tuple[int, ...]:
    """The run of each rank, so that as many bytes as possible are read where they are.

    Of divisions that are as good as each other it is one in which as many ranks as possible have the run of their own
    number: where no host has anything, all of them.

    Args:
        at_hand: float64 [rank, run], bytes of a run that the rank's host has.
    """
    size = len(at_hand)
    gain = at_hand * (size + 1.0) + np.eye(size)
    return _cheapest(gain.max() - gain)


def _cheapest(cost: FloatArray) -> tuple[int, ...]:
    """The column of each row in the cheapest one-to-one assignment: Kuhn's method, by shortest augmenting paths."""
    size = len(cost)
    of_rows, of_columns = np.zeros(size), np.zeros(size + 1)  # prices
    row_at = np.full(size + 1, -1)  # of each column; the last one is where a row waits that has none yet
    for row in range(size):
        row_at[size] = row
        least, before = np.full(size, np.inf), np.full(size, size)
        reached = np.zeros(size + 1, dtype=bool)
        column = size
        while row_at[column] >= 0:
            reached[column] = True
            free = ~reached[:size]
            here = row_at[column]
            through = cost[here] - of_rows[here] - of_columns[:size]
            better = free & (through < least)
            least[better], before[better] = through[better], column
            column = int(np.argmin(np.where(free, least, np.inf)))
            step = least[column]
            of_rows[row_at[reached]] += step
            of_columns[reached] -= step
            least[free] -= step
        while column != size:
            row_at[column] = row_at[before[column]]
            column = int(before[column])
    found = np.empty(size, dtype=np.int64)
    found[row_at[:size]] = np.arange(size)
    return tuple(found.tolist())
