"""When the next checkpoint is due."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hvdspark.specs import TrainSpec

# What checkpoints may cost where nobody said how often they come, and how long ranks live in the mean.
SHARE, LIFE_S = 0.03, 3600.0
LEAST_S, MOST_S = 5.0, 60.0
_FIRST_COST_S = 1.0


class CheckpointPace:
    """How often a run writes checkpoints in the middle of its epochs.

    Args:
        spec: with intervals in global batches, in seconds, in both or in neither: then they follow from what one costs.
        clock: seconds; for tests.
    """

    def __init__(self, spec: TrainSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._seconds = spec.checkpoint_interval_steps, spec.checkpoint_interval_seconds
        self._clock = clock
        self._cost_s = _FIRST_COST_S
        self._since = clock()

    def begun(self) -> None:
        """A checkpoint is begun now."""
        self._since = self._clock()

    def cost(self, seconds: float) -> None:
        """What the last checkpoint, or to read it, has taken from training."""
        self._cost_s = seconds

    @property
    def interval_s(self) -> float:
        """Seconds from one checkpoint to the next; infinite where global batches decide."""
        if self._seconds is not None:
            return self._seconds
        return interval(self._cost_s) if self._every is None else math.inf

    def is_due(self) -> bool:
        """Whether one is due by the clock of this host."""
        return self._clock() - self._since >= self.interval_s

    def is_due_by_steps(self, before: int, now: int) -> bool:
        """Whether one is due where so many global batches of the run were done before the last step, and are now. It
        depends on nothing else, so all ranks of all generations say the same."""
        return self._every is not None and now // self._every > before // self._every


def interval(cost_s: float) -> float:
    """Seconds between checkpoints that cost so much each.

    As many as lose least where ranks live for an hour (J. W. Young, 1974: sqrt(2 cost life)), but at least one a
    minute, and never so many that they cost more than 3 % of the time.
    """
    best = min(MOST_S, max(LEAST_S, math.sqrt(2 * cost_s * LIFE_S)))
    return max(best, cost_s / SHARE)
