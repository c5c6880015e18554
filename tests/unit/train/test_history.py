from __future__ import annotations

import math
from typing import Any

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.train import history
from hvdspark.train.history import BestEpoch, Clock, Reporter, resolve_monitor


def run(monitor: str | None, patience: int, values: list[float]) -> tuple[BestEpoch, int | None]:
    """Feed values epoch by epoch; where it stopped, or None."""
    best = BestEpoch(monitor, patience)
    for epoch, value in enumerate(values):
        if best.update({"epoch": epoch, str(monitor): value}):
            return best, epoch
    return best, None


@pytest.mark.parametrize(
    ("monitor", "values", "epoch"),
    [
        ("val_loss", [3.0, 1.0, 2.0], 1),
        ("val_logloss", [3.0, 1.0, 2.0], 1),
        ("val_mse_auction", [3.0, 1.0, 2.0], 1),
        ("train_loss", [1.0, 1.0, 2.0], 0),
        ("val_auc", [0.5, 0.7, 0.6], 1),
        ("val_auc_click", [0.5, 0.7, 0.6], 1),
        ("val_accuracy", [0.9, 0.7, 0.6], 0),
        ("val_auc", [math.nan, 0.6, math.nan], 1),
        ("val_auc", [math.nan, math.nan], 1),
        (None, [3.0, 1.0, 2.0], 2),
    ],
)
def test_the_best_epoch(monitor: str | None, values: list[float], epoch: int) -> None:
    assert run(monitor, 0, values)[0].epoch == epoch


def test_patience_counts_epochs_without_improvement() -> None:
    assert run("val_loss", 2, [3.0, 1.0, 1.5, 0.5, 0.6, 0.7, 0.1])[1] == 5
    assert run("val_loss", 1, [3.0, 3.0])[1] == 1
    assert run("val_loss", 2, [3.0, math.nan, 2.0, math.nan, math.nan])[1] == 4
    assert run("val_loss", 0, [1.0, 2.0, 3.0, 4.0])[1] is None


def test_monitor_falls_back_to_the_last_epoch_only_when_nobody_asked() -> None:
    assert resolve_monitor("val_auc", 1, ["train_loss", "val_loss", "val_auc"], True) == "val_auc"
    assert resolve_monitor("train_loss", 1, ["train_loss"], False) == "train_loss"
    assert resolve_monitor("val_loss", 0, ["train_loss"], False) is None


@pytest.mark.parametrize(
    ("monitor", "patience", "has_validation", "words"),
    [
        ("val_loss", 3, False, "no validation rows to monitor: 'val_loss'"),
        ("val_auc", 0, False, "no validation rows"),
        ("val_auc", 0, True, "unknown value to monitor: 'val_auc'"),
        ("loss", 0, False, "unknown value to monitor: 'loss'"),
    ],
)
def test_a_monitor_nobody_computes_is_refused(monitor: str, patience: int, has_validation: bool, words: str) -> None:
    available = ["train_loss", "val_loss"] if has_validation else ["train_loss"]
    with pytest.raises(ConfigurationError, match=words):
        resolve_monitor(monitor, patience, available, has_validation)


def test_only_rank_0_reports_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    now = [100.0]
    monkeypatch.setattr(history.time, "perf_counter", lambda: now[0])
    reporter, silent = Reporter(events.append, 0), Reporter(events.append, 1)
    for step in range(100):
        now[0] += 0.01
        for one in (reporter, silent):
            one.batch(0, 1, step + 1, 100, 10 * step, 1000.0, 0.5)
    silent.epoch({"epoch": 0})
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
    }
    reporter.epoch({"epoch": 0, "train_loss": 0.5})
    assert events[-1] == {"event": "epoch", "epoch": 0, "train_loss": 0.5}


def test_the_clock_adds_up_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(history.time, "perf_counter", lambda: next(now))
    clock = Clock()
    with clock("loading"):
        pass
    with pytest.raises(KeyError), clock("loading"):
        raise KeyError
    assert clock.seconds["loading"] == 2.5
