"""The picture of a fit."""

from __future__ import annotations

import importlib.util
import io

import pytest

from hvdspark.tracking.curve import drawn
from hvdspark.tracking.entries import Curve


@pytest.mark.parametrize("metrics", [{}, {"val_loss": 0.6}, {"val_loss": 0.6, "val_auc": 0.7}])
@pytest.mark.parametrize("epochs", [1, 4])
def test_a_panel_for_losses_and_one_for_metrics(epochs: int, metrics: dict[str, float]) -> None:
    history = tuple({"epoch": epoch, "train_loss": 0.7 - epoch / 10, **metrics} for epoch in range(epochs))
    figure = drawn(Curve("c.png", history, 0))
    assert figure is not None
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    best = ["best epoch"] if epochs > 1 else []
    losses = ["train_loss", *(["val_loss"] if metrics else [])]
    assert named == [[*losses, *best], *([["val_auc", *best]] if "val_auc" in metrics else [])]
    figure.savefig(io.BytesIO())


def test_without_matplotlib_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert drawn(Curve("c.png", ({"epoch": 0, "train_loss": 1.0},), 0)) is None
