"""The progress bar: drawn only where somebody looks, and never in the way."""

from __future__ import annotations

import io
import sys

import pytest

from hvdspark.train.progress import ProgressBar, wanted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_wanted_on_a_terminal_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not wanted({})
    assert wanted({"HVDSPARK_PROGRESS": "1"})
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert wanted({})
    assert not wanted({"HVDSPARK_PROGRESS": "0"})


def events() -> list[dict[str, object]]:
    progress = {"event": "progress", "epoch": 0, "epochs": 2, "step": 3, "steps": 4, "loss": 0.5, "rows_per_s": 12345.0}
    return [
        {"event": "something else"},
        progress,
        {"event": "epoch", "epoch": 0, "val_auc": 0.75},
        {**progress, "epoch": 1, "step": 4, "loss": 0.25},
    ]


def test_it_shows_rate_loss_and_the_monitored_metric(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(enabled=True, monitor="val_auc") as bar:
        for event in events():
            bar.on_event(event)
    drawn = capsys.readouterr().err
    assert "8/8" in drawn
    for part in ("loss=0.2500", "rows/s=12,345", "val_auc=0.7500"):
        assert part in drawn


def test_disabled_it_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(enabled=False, monitor="val_auc") as bar:
        for event in events():
            bar.on_event(event)
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""
