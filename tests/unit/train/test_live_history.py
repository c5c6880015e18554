"""The history of a fit while it runs."""

from __future__ import annotations

from hvdspark.events import EpochEnded, FitEnded, FitFailed, FitStarted
from hvdspark.train import History

STARTED = FitStarted("uid", {}, ("x",), ("y",), None, 2)


def test_it_has_what_a_fit_that_failed_had_reached() -> None:
    history = History()
    for event in (STARTED, EpochEnded(0, {"epoch": 0}), EpochEnded(1, {"epoch": 1}), FitFailed(ValueError())):
        history.on_event(event)
    assert [row["epoch"] for row in history.rows] == [0, 1]
    history.on_event(STARTED)
    assert history.rows == [], "another fit"


def test_an_epoch_that_comes_again_after_a_restart_is_there_once() -> None:
    history = History()
    for epoch, loss in ((0, 0.5), (1, 0.4), (1, 0.3), (2, 0.2)):
        history.on_event(EpochEnded(epoch, {"epoch": epoch, "loss": loss}))
    assert [(row["epoch"], row["loss"]) for row in history.rows] == [(0, 0.5), (1, 0.3), (2, 0.2)]


def test_reports_that_were_lost_come_with_the_result() -> None:
    history = History()
    history.on_event(STARTED)
    history.on_event(FitEnded("file:///m", ({"epoch": 0}, {"epoch": 1}), 0, None))
    assert [row["epoch"] for row in history.rows] == [0, 1]
