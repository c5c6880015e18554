"""Where a fit stands, as plain data, for who asks while it runs in another thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from hvdspark.errors import FitCancelledError, PreemptedError
from hvdspark.events import (
    CheckpointCommitted,
    FitEnded,
    FitEvent,
    FitFailed,
    FitListener,
    FitStarted,
    GenerationStarted,
    PhaseStarted,
    SlotsAwaited,
    StepsDone,
)

State = Literal[
    "checking", "materialising", "launching", "waiting", "training", "finished", "failed", "cancelled", "preempted"
]


@dataclass(frozen=True)
class FitStatus:
    """Where a fit stands. What nobody knows yet is None.

    Attributes:
        state: "checking" what was asked for, "materialising" rows, "launching" ranks, "waiting" for task slots,
            "training"; or how it ended: "finished", "failed", "cancelled" or "preempted".
        run_id: of the fit; "" before it has one.
        generation: 0 for the first launch of the ranks, then one more for each other.
        world_size: ranks of this generation.
        epoch, epochs: from 0, and how many there will be at most.
        step, steps: global batches done in this epoch, and of an epoch.
        loss: of rank 0's rows of the last batch that was reported.
        eta_s: seconds until all epochs are trained, at the pace of this one; early stopping may end it before.
        checkpoint: directory of the newest checkpoint, relative to the store.
        seconds: since the fit was called; until it ended, where it has.
    """

    state: State = "checking"
    run_id: str = ""
    generation: int | None = None
    world_size: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    eta_s: float | None = None
    checkpoint: str | None = None
    seconds: float = 0.0


def after(status: FitStatus, event: FitEvent) -> FitStatus:
    """Where a fit stands after an event. Pure."""
    match event:
        case FitStarted(run_id=run_id):
            return replace(status, run_id=run_id)
        case PhaseStarted(phase="materialize"):
            return replace(status, state="materialising")
        case PhaseStarted():
            return replace(status, state="launching")
        case SlotsAwaited():
            return replace(status, state="waiting")
        case GenerationStarted(generation=generation, world_size=size):
            return replace(status, state="launching", generation=generation, world_size=size, eta_s=None)
        case StepsDone():
            return replace(
                status,
                state="training",
                epoch=event.epoch,
                epochs=event.epochs,
                step=event.step,
                steps=event.steps,
                loss=event.loss,
                eta_s=_seconds_left(event),
            )
        case CheckpointCommitted(path=path):
            return replace(status, checkpoint=path)
        case FitEnded():
            return replace(status, state="finished", eta_s=0.0)
        case FitFailed(error=error):
            return replace(status, state=how_it_ended(error), eta_s=None)
    return status


def how_it_ended(error: BaseException) -> State:
    """The state of a fit that ended with an error."""
    if isinstance(error, PreemptedError):
        return "preempted"
    return "cancelled" if isinstance(error, FitCancelledError) else "failed"


def _seconds_left(event: StepsDone) -> float | None:
    if event.step == 0 or event.rows_per_s <= 0:
        return None
    batches = (event.epochs - event.epoch) * event.steps - event.step
    return batches * (event.rows / event.step) / event.rows_per_s


class StatusOfFit(FitListener):
    """A listener that knows where one fit stands. Thread-safe.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._called_s = clock()
        self._ended_s: float | None = None
        self._status = FitStatus()

    def on_event(self, event: FitEvent) -> None:
        self._status = after(self._status, event)

    def end(self, state: State) -> None:
        """The fit has ended, with or without events."""
        self._status = replace(self._status, state=state)
        self._ended_s = self._clock()

    @property
    def now(self) -> FitStatus:
        """Where the fit stands."""
        until_s = self._clock() if self._ended_s is None else self._ended_s
        return replace(self._status, seconds=until_s - self._called_s)
