"""The picture of a fit: loss and metrics over the epochs."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

from hvdspark.notebook import once
from hvdspark.tracking.entries import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSSES = ("train_loss", "val_loss")


def drawn(curve: Curve) -> Figure | None:
    """The losses and, below them, the metrics of the validation rows; None where matplotlib is not installed.

    Made without pyplot, whose figures are those of the main thread.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    names = [*LOSSES, *(name for name in curve.history[0] if name.startswith("val_") and name not in LOSSES)]
    lines = once({name: _values(curve, name) for name in names if name in curve.history[0]})
    losses = [name for name in lines if name in LOSSES]
    metrics = [name for name in lines if name not in LOSSES]
    figure = Figure(figsize=(7, 3.2 * (1 + bool(metrics))), dpi=110, layout="constrained")
    panels = figure.subplots(1 + bool(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, names in zip(panels, (losses, metrics), strict=False):
        _draw(axes, curve, names)
    panels[0].set_ylabel("loss")
    if metrics:
        panels[1].set_ylabel("validation rows")
    panels[-1].set_xlabel("epoch")
    return figure


def _draw(axes: Axes, curve: Curve, names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in curve.history]
    for name in names:
        axes.plot(epochs, _values(curve, name), marker="o", markersize=4, label=name)
    if len(epochs) > 1:
        axes.axvline(curve.best_epoch, linestyle=":", color="grey", label="best epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def _values(curve: Curve, name: str) -> list[float]:
    return [float(row.get(name, math.nan)) for row in curve.history]
