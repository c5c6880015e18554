"""Events of a fit: from a report to the listeners, whatever these do."""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import replace

import pytest

from hvdspark import events
from hvdspark.events import (
    CheckpointCommitted,
    EpochEnded,
    FitEnded,
    FitEvent,
    FitFailed,
    FitListener,
    FitStarted,
    GenerationStarted,
    RankLost,
    SlotsAwaited,
    StepsDone,
    Straggler,
    TablesRead,
    Warned,
)
from hvdspark.fan_out import FanOut, Report, event_of


class Seen(FitListener):
    """Keeps the events and, of those that have a method, its name."""

    def __init__(self) -> None:
        self.events: list[FitEvent] = []

    def on_event(self, event: FitEvent) -> None:
        self.events.append(event)


PROGRESS = {"epoch": 0, "epochs": 2, "step": 3, "steps": 4, "rows": 24, "rows_per_s": 9.5, "loss": 0.5}


@pytest.mark.parametrize(
    ("report", "event"),
    [
        ({"event": "progress", "rank": 0, **PROGRESS}, StepsDone(0, 2, 3, 4, 24, 9.5, 0.5, {})),
        (
            {"event": "progress", **PROGRESS, "seconds": {"loading": 1.0}},
            StepsDone(**PROGRESS, seconds={"loading": 1.0}),
        ),
        ({"event": "epoch", "rank": 0, "epoch": 1, "val_auc": 0.7}, EpochEnded(1, {"epoch": 1, "val_auc": 0.7})),
        ({"event": "checkpoint", "epoch": 2, "path": "runs/r/c"}, CheckpointCommitted(2, "runs/r/c")),
        (
            {"event": "waiting", "slots": 2, "free": 1, "total": 4, "ahead": 2, "waited_s": 1.5, "again": False},
            SlotsAwaited(2, 1, 4, 2, 1.5),
        ),
        ({"event": "generation", "generation": 1, "world_size": 3}, GenerationStarted(1, 3)),
        ({"event": "straggler", "epoch": 1, "late": 2, "seconds": 3.0, "others": 1.0}, Straggler(1, 2, 3.0, 1.0)),
        (
            {"event": "straggler", "epoch": 1, "late": 2, "seconds": 3.0, "others": 1.0, "step": 9},
            Straggler(1, 2, 3.0, 1.0, 9),
        ),
        (
            {"event": "rank_lost", "generation": 0, "lost": 2, "host": "h", "kind": "signal", "cause": "SIGKILL"},
            RankLost(0, 2, "h", "signal", "SIGKILL"),
        ),
        ({"event": "tables_read", "bytes": 9, "moved_bytes": 3}, TablesRead(9, 3)),
        ({"event": "warning", "text": "so"}, Warned("so")),
        ({"event": "of a user's own"}, None),
        ({}, None),
    ],
)
def test_what_a_report_is_about(report: Report, event: FitEvent | None) -> None:
    assert event_of(report) == event


def test_every_event_has_a_method_of_the_listener() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, FitEvent)}
    methods = {name for name in vars(FitListener) if name.startswith("on_")} - {"on_event"}
    called: list[str] = []
    listener = FitListener()
    for name in methods:
        setattr(listener, name, lambda event, name=name: called.append(name))
    for kind in kinds - {FitEvent}:
        listener.on_event(object.__new__(kind))
    assert sorted(called) == sorted(methods)
    listener.on_event(FitEvent())  # an event of a later version: nobody has a method for it
    assert len(called) == len(methods)


def test_a_listener_that_raises_is_logged_and_nobody_else_notices(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FitListener):
        def on_warned(self, event: Warned) -> None:
            raise ValueError("its own words")

    before, after = Seen(), Seen()
    fan_out = FanOut("run-1", [before, Broken(), after])
    with caplog.at_level(logging.WARNING, "hvdspark"):
        fan_out.report({"event": "warning", "text": "so"})
        fan_out.report({"event": "something else"})
    assert before.events == after.events == [Warned("so", run_id="run-1")]
    assert "Broken failed in Warned" in caplog.text
    assert "its own words" in caplog.text


def test_a_warning_that_ranks_report_and_give_back_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen()
    fan_out = FanOut("run-1", [seen])
    fan_out.report({"event": "warning", "text": "so"})
    assert fan_out.warn(["so", "and so"]) == ("so", "and so")
    assert seen.events == [Warned("so", run_id="run-1"), Warned("and so", run_id="run-1")]
    assert [record.message for record in caplog.records] == ["so", "and so"]
    assert fan_out.warn(["twice", "twice"]) == ("twice", "twice")
    assert seen.events[2:] == [Warned("twice", run_id="run-1")]


STARTED = FitStarted("e", {}, ("x",), ("y",), None, 2)


def test_a_fit_that_is_left_by_an_error_has_failed() -> None:
    seen, error = Seen(), ValueError("so")
    with pytest.raises(ValueError, match="so"), FanOut("r", [seen]).fit(STARTED):
        raise error
    assert seen.events == [replace(STARTED, run_id="r"), FitFailed(error, run_id="r")]


def test_a_fit_that_is_interrupted_while_its_start_is_told_has_failed() -> None:
    class Interrupted(FitListener):
        def on_fit_started(self, event: FitStarted) -> None:
            raise KeyboardInterrupt

    seen = Seen()
    with pytest.raises(KeyboardInterrupt), FanOut("r", [seen, Interrupted()]).fit(STARTED):
        raise AssertionError("it goes on")
    assert [type(event) for event in seen.events] == [FitStarted, FitFailed]


def test_an_interrupt_in_a_listener_is_not_swallowed() -> None:
    class Interrupted(FitListener):
        def on_warned(self, event: Warned) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FanOut("r", [Interrupted()]).emit(Warned("so"))


@pytest.mark.parametrize("last", [FitEnded("file:///m", (), 0, None), FitFailed(ValueError())])
def test_nothing_comes_after_the_end(last: FitEvent) -> None:
    """A slow listener keeps reports of ranks waiting, maybe for longer than the fit lasts."""
    seen = Seen()
    fan_out = FanOut("r", [seen])
    fan_out.emit(last)
    fan_out.report({"event": "progress", **PROGRESS})
    fan_out.warn(["too late"])
    fan_out.emit(FitFailed(KeyboardInterrupt()))
    assert [type(event) for event in seen.events] == [type(last)]


def test_events_come_one_at_a_time_from_any_thread() -> None:
    two = threading.Barrier(2, timeout=0.2)

    class OneAtATime(FitListener):
        inside = most = calls = 0

        def on_event(self, event: FitEvent) -> None:
            self.inside += 1
            with contextlib.suppress(threading.BrokenBarrierError):  # from its first timeout on
                two.wait()  # for another thread, if it may come in
            self.most, self.calls = max(self.most, self.inside), self.calls + 1
            self.inside -= 1

    listener = OneAtATime()
    fan_out = FanOut("r", [listener])
    threads = [threading.Thread(target=lambda: [fan_out.emit(Warned("so")) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (listener.most, listener.calls) == (1, 800)
