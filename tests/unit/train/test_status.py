"""Where a fit stands, from its events."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hvdspark.errors import FitCancelledError, PreemptedError
from hvdspark.events import (
    CheckpointCommitted,
    FitEnded,
    FitEvent,
    FitFailed,
    FitStarted,
    GenerationStarted,
    PhaseStarted,
    SlotsAwaited,
    StepsDone,
    Warned,
)
from hvdspark.train.status import FitStatus, StatusOfFit, after


def steps(step: int, epoch: int = 0, rows_per_s: float = 100.0) -> StepsDone:
    return StepsDone(epoch, 2, step, 10, step * 50, rows_per_s, 0.5)


def test_from_the_first_event_to_the_last() -> None:
    events: list[FitEvent] = [
        FitStarted("e", {}, ("x",), ("y",), None, 2, run_id="r"),
        PhaseStarted("materialize"),
        PhaseStarted("launch"),
        SlotsAwaited(2, 0, 2, 1, 1.0),
        GenerationStarted(1, 3),
        steps(4),
        Warned("x"),
        CheckpointCommitted(1, "runs/r/checkpoints/epoch-00000"),
        FitEnded("uri", (), 0, None),
    ]
    status, states = FitStatus(), list[str]()
    for event in events:
        status = after(status, event)
        states.append(status.state)
    assert states == [
        "checking",
        "materialising",
        "launching",
        "waiting",
        *("launching", "training", "training", "training", "finished"),
    ]
    assert (status.run_id, status.generation, status.world_size) == ("r", 1, 3)
    assert (status.epoch, status.epochs, status.step, status.steps, status.loss) == (0, 2, 4, 10, 0.5)
    assert status.checkpoint == "runs/r/checkpoints/epoch-00000"


def test_the_time_that_is_left_is_that_of_all_epochs() -> None:
    # 16 batches of 50 rows are left, at 100 rows a second.
    assert after(FitStatus(), steps(4)).eta_s == pytest.approx(8.0)
    assert after(FitStatus(), steps(10, epoch=1)).eta_s == 0
    assert after(FitStatus(), steps(0)).eta_s is None
    assert after(FitStatus(), steps(4, rows_per_s=0.0)).eta_s is None
    assert after(after(FitStatus(), steps(4)), GenerationStarted(1, 2)).eta_s is None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (PreemptedError("x"), "preempted"),
        (FitCancelledError("x"), "cancelled"),
        (ValueError("x"), "failed"),
        (KeyboardInterrupt(), "failed"),
    ],
)
def test_how_it_ended(error: BaseException, state: str) -> None:
    assert after(FitStatus(), FitFailed(error)).state == state


def test_seconds_stop_when_the_fit_has_ended() -> None:
    now: list[Any] = [10.0]
    status = StatusOfFit(clock=lambda: now[0])
    now[0] = 12.5
    assert math.isclose(status.now.seconds, 2.5)
    status.end("failed")
    now[0] = 100.0
    assert (status.now.state, status.now.seconds) == ("failed", 2.5)
