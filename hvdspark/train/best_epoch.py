"""Which epoch is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.errors import ConfigurationError

_HIGHER_IS_BETTER = ("auc", "accuracy")


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

    def best_first(self, history: Sequence[dict[str, Any]]) -> list[int]:
        """All epochs, the best first; those whose value is NaN are the last."""
        at = {row["epoch"]: -row["epoch"] if self.monitor is None else row[self.monitor] for row in history}
        sign = -1 if self.monitor is not None and self._better(1.0, 0.0) else 1
        others = sorted(at, key=lambda epoch: (math.isnan(at[epoch]), sign * at[epoch]))
        return [self.epoch, *(epoch for epoch in others if epoch != self.epoch)]

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
