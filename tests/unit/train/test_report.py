from __future__ import annotations

from typing import Any

import pytest

from hvdspark.events import CheckpointCommitted, EpochEnded, StepsDone, Warned
from hvdspark.fan_out import event_of
from hvdspark.train import report
from hvdspark.train.report import Reporter


def test_only_rank_0_reports_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    now = [100.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    reporter, silent = Reporter(events.append, 0), Reporter(events.append, 1)
    for step in range(100):
        now[0] += 0.01
        for one in (reporter, silent):
            one.steps_done(0, 1, step + 1, 100, 10 * step, 1000.0, 0.5, lambda: {"loading": 0.25})
    silent.epoch_ended({"epoch": 0})
    assert [event["step"] for event in events] == [1, 26, 51, 76]
    assert events[0] == {
        "event": "progress",
        "epoch": 0,
        "epochs": 1,
        "step": 1,
        "steps": 100,
        "rows": 0,
        "rows_per_s": 1000.0,
        "loss": 0.5,
        "seconds": {"loading": 0.25},
    }
    reporter.epoch_ended({"epoch": 0, "train_loss": 0.5})
    assert events[-1] == {"event": "epoch", "epoch": 0, "train_loss": 0.5}


def test_the_driver_makes_events_of_all_reports() -> None:
    reports: list[dict[str, Any]] = []
    reporter = Reporter(reports.append, 0)
    reporter.steps_done(1, 3, 7, 9, 70, 1000.0, 0.5, lambda: {"loading": 0.25})
    reporter.epoch_ended({"epoch": 1, "train_loss": 0.5})
    reporter.checkpoint_committed(2, "runs/r/checkpoints/epoch-00001")
    reporter.warning("look here")
    assert [event_of(given) for given in reports] == [
        StepsDone(1, 3, 7, 9, 70, 1000.0, 0.5, {"loading": 0.25}),
        EpochEnded(1, {"epoch": 1, "train_loss": 0.5}),
        CheckpointCommitted(2, "runs/r/checkpoints/epoch-00001"),
        Warned("look here"),
    ]
