"""Clocks, history rows, and which epoch is the best."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.errors import ConfigurationError

PHASES = ("loading", "forward_backward", "exchange_step", "validation", "checkpoint")
_HIGHER_IS_BETTER = ("auc", "accuracy")
_REPORT_INTERVAL_S = 0.25


class Clock:
    """Wall seconds by phase."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started


class Reporter:
    """Rank 0's words to the driver, at most four times a second; the other ranks stay silent."""

    def __init__(self, report: Callable[[dict[str, Any]], None], rank: int) -> None:
        self._report = report if rank == 0 else _silent
        self._last = -math.inf

    def batch(self, epoch: int, epochs: int, step: int, steps: int, rows: int, rows_per_s: float, loss: float) -> None:
        now = time.perf_counter()
        if now - self._last < _REPORT_INTERVAL_S:
            return
        self._last = now
        self._report(
            {
                "event": "progress",
                "epoch": epoch,
                "epochs": epochs,
                "step": step,
                "steps": steps,
                "rows": rows,
                "rows_per_s": rows_per_s,
                "loss": loss,
            }
        )

    def epoch(self, row: dict[str, Any]) -> None:
        self._report({"event": "epoch", **row})

    def warning(self, text: str) -> None:
        self._report({"event": "warning", "text": text})


@dataclass
class BestEpoch:
    """Early stopping and best-epoch selection, as a value that fits into a checkpoint.

    Attributes:
        monitor: key of the history row to look at, or None: the last epoch is the best.
        patience: epochs without improvement before stopping; 0 never stops.
        best: best value so far (None before the first finite one).
        epoch: its epoch.
        stale: epochs since then.
    """

    monitor: str | None
    patience: int = 0
    best: float | None = None
    epoch: int = 0
    stale: int = 0

    def update(self, row: dict[str, Any]) -> bool:
        """Take in a complete epoch; whether patience has run out. NaN is no improvement."""
        if self.monitor is None:
            self.epoch = row["epoch"]
            return False
        value = row[self.monitor]
        if not math.isnan(value) and (self.best is None or self._better(value, self.best)):
            self.best, self.epoch, self.stale = value, row["epoch"], 0
        else:
            self.stale += 1
            if self.best is None:
                self.epoch = row["epoch"]
        return 0 < self.patience <= self.stale

    def _better(self, value: float, best: float) -> bool:
        assert self.monitor is not None
        metric = self.monitor.removeprefix("val_").split("_")[0]  # val_auc, val_auc_click
        return value > best if metric in _HIGHER_IS_BETTER else value < best


def resolve_monitor(monitor: str, patience: int, available: Sequence[str], has_validation: bool) -> str | None:
    """The history key to watch; None where there is no validation split and nobody asked for early stopping.

    Raises:
        ConfigurationError: a key that no history row will have.
    """
    if monitor in available:
        return monitor
    if not has_validation and monitor.startswith("val_"):
        if monitor == "val_loss" and patience == 0:
            return None
        raise ConfigurationError(
            "there are no validation rows to monitor",
            value=monitor,
            where="monitor",
            hint='give a validation split, or monitor "train_loss"',
        )
    raise ConfigurationError(
        "unknown value to monitor", value=monitor, where="monitor", hint=f"one of {', '.join(available)}"
    )


def _silent(event: dict[str, Any]) -> None:
    return None
