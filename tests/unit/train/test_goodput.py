"""What a fit had of its time."""

from __future__ import annotations

import json

import pytest

from hvdspark.events import GenerationStarted, PhaseStarted, RankLost, StepsDone, Straggler, TablesRead
from hvdspark.train.goodput import Goodput, as_plain

STEP = StepsDone(0, 1, 1, 4, 8, 1.0, 0.5)
LOST = RankLost(0, 1, "host", "signal", "killed by SIGKILL (9)")


class Fit:
    def __init__(self) -> None:
        self.now = 1000.0
        self.listener = Goodput(lambda: self.now)

    def after(self, seconds: float, *events: object) -> None:
        self.now += seconds
        for event in events:
            self.listener.on_event(event)  # type: ignore[arg-type]


def row(epoch: int, **seconds: float) -> dict[str, float]:
    return {"epoch": epoch, "seconds": 99.0, **{f"{phase}_seconds": value for phase, value in seconds.items()}}


@pytest.fixture
def fit() -> Fit:
    return Fit()


def test_a_fit_without_a_failure(fit: Fit) -> None:
    fit.after(0, PhaseStarted("materialize"))
    fit.after(50, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(4, STEP)
    fit.after(16)
    epochs = [row(n, forward_backward=5, exchange_step=2, loading=1, validation=1, checkpoint=0.5) for n in (0, 1)]
    found = fit.listener.measured(epochs)
    assert (found.useful_s, found.wall_s, found.goodput) == (14.0, 20.0, 0.7)
    assert (found.restarts, found.recoveries_s, found.stragglers) == (0, (), {})
    assert (found.input_stall_s, found.checkpoint_s) == (2.0, 1.0)


def test_only_steps_in_the_final_weights_are_useful(fit: Fit) -> None:
    # The first generation trained for 30 s and left nothing: the history has the 10 s of the second.
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(1, STEP)
    fit.after(30, LOST, GenerationStarted(1, 2, "failed", "rank 1 was killed"))
    fit.after(4, STEP)
    fit.after(5, STEP)
    found = fit.listener.measured([row(0, forward_backward=8, exchange_step=2)])
    assert found.goodput == pytest.approx(10 / 40)
    assert (found.restarts, found.recoveries_s) == (1, (4.0,))


def test_what_an_earlier_driver_has_trained_is_not_of_this_fit(fit: Fit) -> None:
    # Epoch 0 and six seconds of epoch 1 were trained before that driver was killed; this one had 9 s of the 15.
    fit.after(0, PhaseStarted("launch"), GenerationStarted(3, 2))
    fit.after(2, StepsDone(1, 3, 41, 100, 8, 1.0, 0.5, {"forward_backward": 4.0, "exchange_step": 2.0, "loading": 0.5}))
    fit.after(1, LOST, GenerationStarted(4, 2, "failed"))
    fit.after(1, StepsDone(1, 3, 31, 100, 8, 1.0, 0.5, {"forward_backward": 3.0, "exchange_step": 1.5}))
    fit.after(14)
    history = [
        row(0, forward_backward=50, exchange_step=9, loading=7, checkpoint=2),
        row(1, forward_backward=7, exchange_step=3, loading=2, checkpoint=1),
        row(2, forward_backward=4, exchange_step=1, loading=1),
    ]
    found = fit.listener.measured(history)
    assert (found.useful_s, found.wall_s, found.goodput) == (9.0, 18.0, 0.5)
    assert (found.input_stall_s, found.checkpoint_s) == (2.5, 1.0)


def test_ranks_that_nobody_has_heard_of_have_their_history(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(10)
    assert fit.listener.measured([row(0, forward_backward=4, exchange_step=1)]).goodput == 0.5


def test_a_run_that_was_finished_already_has_trained_nothing(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"))
    fit.after(1)
    found = fit.listener.measured([row(0, forward_backward=50)])
    assert (found.useful_s, found.goodput) == (0.0, 0.0)


def test_a_frozen_rank_was_lost_before_it_was_noticed(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(1, STEP)
    fit.after(25, RankLost(0, 1, "host", "stalled", "no sign of life", ago_s=20.0), GenerationStarted(1, 2, "failed"))
    fit.after(4, STEP)
    assert fit.listener.measured([]).recoveries_s == (24.0,)


def test_ranks_that_die_before_a_step_are_part_of_one_recovery(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(1, STEP, LOST, GenerationStarted(1, 2, "failed"))
    fit.after(3, LOST, GenerationStarted(2, 2, "failed"))
    fit.after(4, STEP)
    found = fit.listener.measured([])
    assert (found.restarts, found.recoveries_s) == (2, (7.0,))


def test_making_room_and_growing_are_no_restarts(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2))
    fit.after(1, STEP, GenerationStarted(1, 2, "preempted"), GenerationStarted(2, 3, "resized"), STEP)
    found = fit.listener.measured([])
    assert (found.restarts, found.recoveries_s) == (0, ())


def test_late_ranks_are_counted_by_epoch(fit: Fit) -> None:
    fit.after(0, *(Straggler(epoch, rank, 3.0, 1.0, 5) for epoch, rank in ((0, 1), (0, 1), (1, 1), (1, 0))))
    fit.after(0, Straggler(0, 1, 30.0, 10.0))
    assert fit.listener.measured([]).stragglers == {0: 1, 1: 2}


def test_without_a_launch_there_is_nothing(fit: Fit) -> None:
    assert fit.listener.measured([]).goodput == 0.0


def test_it_travels_as_text(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), Straggler(0, 1, 3.0, 1.0, 5))
    plain = as_plain(fit.listener.measured([]))
    assert json.loads(json.dumps(plain)) == {**plain, "recoveries_s": []}
    assert plain["stragglers"] == {"1": 1}


def test_bytes_of_tables_are_those_of_all_generations(fit: Fit) -> None:
    fit.after(0, PhaseStarted("launch"), GenerationStarted(0, 2), TablesRead(100, 40), TablesRead(200, 30))
    found = fit.listener.measured([row(0)])
    assert (found.tables_read_bytes, found.tables_moved_bytes) == (300, 70)
