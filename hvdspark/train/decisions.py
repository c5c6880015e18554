"""What all ranks of a generation decide together while they train: whether to write a checkpoint now, whether to stop.

Ranks that stop, or save, at different steps wait for each other for ever. So each says what it knows at *decision
points*, a few times a second, and all of them draw the same conclusion from what all have said. The answers travel
while the next step is worked on, which waits for the other ranks anyway: a point costs a step nothing that can be
measured, and is acted on behind the next optimizer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hvdspark.collectives import Collective

# A stop or a checkpoint comes at most this much later than it could, where steps are not longer than that. Where they
# are short, points are so many steps apart that nobody sees them.
POINT_S, POINT_STEPS = 0.25, 16
_WISHES = 5


@dataclass(frozen=True)
class Wish:
    """What one rank knows at a decision point.

    Attributes:
        stop: it was told to stop, behind a checkpoint.
        checkpoint: one is due. Of rank 0 only: the clocks of hosts differ.
        writing: it has not yet written the checkpoint before; nobody then begins another because time has passed.
        busy: seconds of its own work since it was launched, in which it waited for no other rank.
    """

    stop: bool = False
    checkpoint: bool = False
    writing: bool = False
    busy: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What all ranks do behind this optimizer step; the same on every rank.

    Attributes:
        checkpoint: write one.
        stop: end this generation behind that checkpoint.
        busy: by rank, seconds of its own work from the point before the last one to the last; empty where no point was.
        steps: optimizer steps in between.
    """

    checkpoint: bool = False
    stop: bool = False
    busy: tuple[float, ...] = ()
    steps: int = 0


NOTHING = Decision()


class DecisionPoints:
    """The decision points of one rank.

    The first comes behind the first optimizer step, and each says when the next one comes: rank 0 measures how long
    steps take. Only what ranks have said goes into a decision, so it is the same on all of them.

    Args:
        collective: of the generation.
        clock: seconds, of rank 0; for tests.
    """

    def __init__(self, collective: Collective, clock: Callable[[], float] = time.perf_counter) -> None:
        self._collective, self._clock = collective, clock
        self._step = self._began = 0  # optimizer steps, and at how many the last point was
        self._next = 1
        self._since, self._busy = clock(), 0.0
        self._answers: Callable[[], tuple[Tensor, Tensor]] | None = None

    def after_step(self, wish: Callable[[], Wish]) -> Decision:
        """Collective. Behind each optimizer step of the generation: what is decided there.

        Args:
            wish: called at points only.
        """
        self._step += 1
        decision = self._decided()
        if self._step >= self._next:
            self._ask(wish())
        return decision

    def close(self) -> None:
        """Collective. No point comes any more: take in what still travels."""
        self._decided()

    def _ask(self, wish: Wish) -> None:
        now, steps = self._clock(), self._step - self._began
        apart = spacing((now - self._since) / steps)
        own = (wish.stop, wish.checkpoint, wish.writing, wish.busy - self._busy, apart)
        self._since, self._began, self._busy = now, self._step, wish.busy
        self._next = self._step + POINT_STEPS + 1  # until rank 0's word is there
        # Horovod remembers a negotiation of this shape, whose last row stays here.
        rows = torch.tensor([own] * (self._collective.size + 1), dtype=torch.float64)
        ones = torch.ones(self._collective.size, dtype=torch.int32)
        self._asked = steps
        self._answers = self._collective.alltoall_async(rows, ones, "train/decision")

    def _decided(self) -> Decision:
        """What the ranks said at the last point, where that is still to be acted on."""
        if self._answers is None:
            return NOTHING
        stop, checkpoint, writing, busy, apart = self._answers()[0].reshape(-1, _WISHES).t().tolist()
        self._answers = None
        self._next = self._began + int(apart[0])
        return Decision(
            checkpoint=bool(checkpoint[0]) and not any(writing),
            stop=any(stop),
            busy=tuple(busy),
            steps=self._asked,
        )


def spacing(step_s: float) -> int:
    """Optimizer steps from one point to the next, where one takes so many seconds: at least 1. Pure."""
    return max(1, min(POINT_STEPS, round(POINT_S / step_s) if step_s > 0 else POINT_STEPS))
