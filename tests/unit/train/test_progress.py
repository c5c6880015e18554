"""The progress bar: drawn only where somebody looks, and never in the way."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from hvdspark.events import (
    EpochEnded,
    FitEnded,
    FitEvent,
    FitFailed,
    FitStarted,
    GenerationStarted,
    PhaseStarted,
    SlotsAwaited,
    StepsDone,
)
from hvdspark.train import progress as progress_module
from hvdspark.train.progress import ProgressBar, ProgressLines, progress, wanted


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


PROGRESS = StepsDone(epoch=0, epochs=2, step=3, steps=4, rows=12, rows_per_s=12345.0, loss=0.5)
STARTED = FitStarted("uid", {}, ("x",), ("y",), None, 2)


def events() -> list[FitEvent]:
    return [
        FitEvent(),
        STARTED,
        PROGRESS,
        EpochEnded(0, {"val_auc": 0.75}),
        replace(PROGRESS, epoch=1, step=4, loss=0.25),
    ]


def ended(epochs: int) -> FitEnded:
    return FitEnded("file:///m", tuple({"epoch": epoch} for epoch in range(epochs)), 0, None)


def test_it_shows_rate_loss_and_the_monitored_metric(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(enabled=True, monitor="val_auc")
    for event in [*events(), ended(2)]:
        bar.on_event(event)
    drawn = capsys.readouterr().err
    assert "8/8" in drawn
    for part in ("loss=0.2500", "rows/s=12,345", "val_auc=0.7500"):
        assert part in drawn


def test_disabled_it_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(enabled=False, monitor="val_auc")
    for event in [*events(), ended(2)]:
        bar.on_event(event)
    captured = capsys.readouterr()
    assert captured.err + captured.out == ""


@pytest.mark.parametrize(
    ("reports", "epochs_run", "last"),
    [
        ([(0, 1)], 2, "8/8"),  # 25 %, and nothing of the batches after it
        ([(0, 1), (1, 3)], 2, "8/8"),
        ([(0, 4)], 1, "4/4"),  # stopped early
    ],
)
def test_the_bar_of_a_fit_that_finished_is_full(
    capsys: pytest.CaptureFixture[str], reports: list[tuple[int, int]], epochs_run: int, last: str
) -> None:
    bar = ProgressBar(enabled=True, monitor="val_auc")
    for epoch, step in reports:
        bar.on_event(replace(PROGRESS, epoch=epoch, step=step))
        bar.on_event(EpochEnded(epoch, {"val_auc": 0.5 + epoch / 4}))
    bar.on_event(ended(epochs_run))
    final = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in final
    assert last in final
    assert ("stopped=epoch 0" in final) == (epochs_run == 1)


def test_the_end_of_an_epoch_fills_its_part_of_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever batch was the last to be reported."""
    bar = ProgressBar(enabled=True, monitor="val_auc")
    bar.on_event(replace(PROGRESS, epochs=1))
    bar.on_event(EpochEnded(0, {}))
    assert "4/4" in capsys.readouterr().err.split("\r")[-1]


def test_the_bar_of_a_fit_that_failed_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(enabled=True, monitor="val_auc")
    bar.on_event(PROGRESS)
    bar.on_event(FitFailed(ValueError()))
    assert "100%" not in capsys.readouterr().err


def test_lines_come_where_no_rank_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """While rows are written, ranks start, or a validation runs for minutes."""
    said: list[str] = []
    came = threading.Event()

    def say(text: str) -> None:
        said.append(re.sub(r"\d+ s$", "_ s", text))
        came.set()

    monkeypatch.setattr(progress_module, "_say", say)
    monkeypatch.setattr(progress_module, "_INTERVAL_S", 0.01)
    expected = ["rows are written", "ranks start", "epoch 1 of 2, batch 3 of 4, loss 0.5000, 12,345 rows/s"]
    lines = ProgressLines("val_auc")
    lines.on_event(STARTED)
    happens = [PhaseStarted("materialize"), PhaseStarted("launch"), PROGRESS]
    for doing, event in zip(expected, happens, strict=True):
        lines.on_event(event)
        came.clear()
        while f"hvdspark fit: {doing}, _ s" not in said:
            assert came.wait(30)
            came.clear()
    lines.on_event(FitFailed(ValueError()))
    assert not [thread for thread in threading.enumerate() if thread.name == "hvdspark-progress"]


def test_elsewhere_there_is_a_line_every_30_seconds(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    lines = ProgressLines("val_auc", lambda: now)
    for second in range(0, 100, 5):
        now = 100.0 + second
        lines.on_event(replace(PROGRESS, epoch=second // 50, step=1 + second % 4))
        if second == 45:
            lines.on_event(EpochEnded(0, {"val_auc": 0.75}))
    lines.on_event(ended(2))
    caplog.set_level(logging.INFO, "hvdspark")
    lines.on_event(ended(2))
    printed = capsys.readouterr().err.splitlines()
    assert [re.sub(r"batch \d", "batch _", line) for line in printed] == [
        "hvdspark fit: epoch 1 of 2, batch _ of 4, loss 0.5000, 12,345 rows/s, 30 s",
        "hvdspark fit: epoch 2 of 2, batch _ of 4, loss 0.5000, 12,345 rows/s, val_auc 0.7500 after epoch 1, 60 s",
        "hvdspark fit: epoch 2 of 2, batch _ of 4, loss 0.5000, 12,345 rows/s, val_auc 0.7500 after epoch 1, 90 s",
        "hvdspark fit: 2 epochs in 95 s, val_auc 0.7500 after epoch 1",
    ]
    assert "2 epochs in 95 s" in caplog.text, "where the log takes INFO it is there, and only there"


def test_lines_come_until_there_is_a_bar_and_while_ranks_start_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a fit that writes rows for a minute, on a clock that is set."""
    now = 0.0
    bar = ProgressBar(True, "val_auc", lambda: now)

    def after(second: float) -> str:
        nonlocal now
        now = second
        bar.lines.say_if_due()
        return capsys.readouterr().err

    bar.on_event(PhaseStarted("materialize"))
    assert after(29.9) == ""
    assert after(30) == "hvdspark fit: rows are written, 30 s\n"
    assert after(59) == ""
    bar.on_event(PhaseStarted("launch"))
    bar.on_event(SlotsAwaited(2, 1, 4, 2, 1.5))
    assert after(60) == "hvdspark fit: waits for 2 task slots, 1 of 4 are free, 60 s\n"
    bar.on_event(GenerationStarted(0, 2))
    assert after(91) == "hvdspark fit: ranks start, 91 s\n"
    bar.on_event(PROGRESS)
    assert ", 200 s" not in after(200), "there is the bar"
    bar.on_event(GenerationStarted(1, 2))
    assert "hvdspark fit: ranks start, generation 1, 231 s\n" in after(231)
    bar.on_event(replace(PROGRESS, step=4))
    bar.on_event(ended(1))
    assert "generation=1" in capsys.readouterr().err


def test_a_bar_leaves_no_thread() -> None:
    for last in (ended(2), FitFailed(ValueError())):
        bar = ProgressBar(True, "val_auc")
        bar.on_event(STARTED)
        assert [thread for thread in threading.enumerate() if thread.name == "hvdspark-progress"]
        bar.on_event(last)
        assert not [thread for thread in threading.enumerate() if thread.name == "hvdspark-progress"]


def test_a_short_fit_says_nothing_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines("val_auc", lambda: 0.0)
    for event in [*events(), ended(2)]:
        lines.on_event(event)
    assert capsys.readouterr().err == ""


def test_what_is_shown_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shown = {choice: type(progress("val_auc", {"HVDSPARK_PROGRESS": choice})) for choice in ("", "0", "1")}
    assert shown == {"": ProgressLines, "0": ProgressBar, "1": ProgressBar}
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress("val_auc", {})) is ProgressBar


def test_a_notebook_without_widgets_is_not_warned() -> None:
    code = """
import sys, types, warnings
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(config={"IPKernelApp": {}}))
sys.modules["IPython.display"] = types.SimpleNamespace(display=print, clear_output=print)
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
sys.modules["ipywidgets"] = None
warnings.simplefilter("error")
from hvdspark.events import FitFailed, StepsDone
from hvdspark.train.progress import ProgressBar, wanted
assert wanted({})
bar = ProgressBar(True, "val_auc")
bar.on_event(StepsDone(epoch=0, epochs=1, step=1, steps=4, rows=1, loss=0.5, rows_per_s=1.0))
bar.on_event(FitFailed(ValueError()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "1/4" in done.stderr
