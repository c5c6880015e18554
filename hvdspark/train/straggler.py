"""Which rank the others wait for."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import gathered
from hvdspark.collectives.watched import Waiting

# Where ranks are alike, the slowest is not this much slower than the middle of the others.
_FACTOR, _LEAST_S = 1.5, 1.0
# Between two decision points, a few steps apart.
_LEAST_AT_POINT_S = 0.05
# A pause of a single step (a collection of garbage, a page that was swapped out) is no slowness.
_STEPS_TO_BELIEVE = 3

# Takes the rank, its seconds, and the median seconds of the others.
Tell = Callable[[int, float, float], None]


def straggler(busy: Sequence[float]) -> tuple[int, float] | None:
    """(rank, median seconds of the others) where one rank was busy much longer than they were. Pure.

    Args:
        busy: by rank, seconds of an epoch in which it loaded and computed.
    """
    return _late(busy, _LEAST_S)


def busy_by_rank(collective: Collective, seconds: float) -> list[float]:
    """Collective. What each rank gives for itself."""
    return gathered(collective, torch.tensor(seconds, dtype=torch.float64), "train/busy").tolist()


class BusyTime:
    """Seconds of a rank's own work, in which it waits for no other, as the others are to judge it by.

    Attributes:
        total: of all steps so far. Each counts with the median of the last three, so that one pause is not seen.

    Args:
        waiting: of this rank.
        clock: seconds.
    """

    def __init__(self, waiting: Waiting, clock: Callable[[], float] = time.perf_counter) -> None:
        self.total = 0.0
        self._waiting, self._clock = waiting, clock
        self._last: deque[float] = deque(maxlen=_STEPS_TO_BELIEVE)
        self._began_s = self._own_s()

    def begin(self) -> None:
        """A step begins."""
        self._began_s = self._own_s()

    def end(self) -> None:
        """It is done."""
        self._last.append(self._own_s() - self._began_s)
        self.total += statistics.median(self._last)

    def _own_s(self) -> float:
        return self._clock() - self._waiting.seconds


class StragglerWatch:
    """Tells of each rank that is late, once an epoch. Alike on all ranks.

    Args:
        tell: called where a rank is late for the first time in an epoch.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: set[int] = set()

    def begin_epoch(self) -> None:
        self._told = set()

    def look(self, busy: Sequence[float]) -> None:
        """At a decision point: seconds of each rank's own work since the one before, by rank."""
        found = _late(busy, _LEAST_AT_POINT_S)
        if found is not None and found[0] not in self._told:
            self._told.add(found[0])
            self._tell(found[0], busy[found[0]], found[1])


def _late(busy: Sequence[float], least_s: float) -> tuple[int, float] | None:
    if len(busy) < 2:
        return None
    slowest = max(range(len(busy)), key=lambda rank: busy[rank])
    others = statistics.median(seconds for rank, seconds in enumerate(busy) if rank != slowest)
    late = busy[slowest] > max(_FACTOR * others, others + least_s)
    return (slowest, others) if late else None
