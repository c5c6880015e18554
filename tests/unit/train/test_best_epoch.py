from __future__ import annotations

import math

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.train.best_epoch import BestEpoch, resolve_monitor


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


@pytest.mark.parametrize(
    ("monitor", "values", "expected"),
    [
        ("val_loss", [3.0, math.nan, 1.0, 2.0], [2, 3, 0, 1]),
        ("val_auc_click", [0.7, 0.9, math.nan, 0.8], [1, 3, 0, 2]),
        ("val_loss", [1.0, 1.0, 2.0], [0, 1, 2]),
        (None, [0.0, 0.0, 0.0], [2, 1, 0]),
    ],
)
def test_epochs_are_in_the_order_of_their_values(monitor: str | None, values: list[float], expected: list[int]) -> None:
    best = BestEpoch(monitor)
    history = [{"epoch": epoch, str(monitor): value} for epoch, value in enumerate(values)]
    for row in history:
        best.update(row)
    assert best.best_first(history) == expected
