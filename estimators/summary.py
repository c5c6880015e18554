"""What happened during a fit: `model.summary`."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from hvdspark.train.program import TrainResult

if TYPE_CHECKING:
    import pandas as pd


class TrainingSummary:
    """History of a fit, one row (a dict) for each epoch. Made of the `result` of training.

    Attributes:
        history: rows with epoch, train_loss, val_* metrics, learning_rate, rows, seconds, rows_per_s, seconds by phase.
        bestEpoch: the epoch whose weights the model has.
        precision: "float32" or "bfloat16", the arithmetic that training steps used.
        stopped: why training ended before the last epoch: "patience", "callback" or None.
        warnings: sentences the user should read.
        seconds: wall seconds by phase of the fit on rank 0.
    """

    def __init__(self, result: TrainResult) -> None:
        self.history: list[dict[str, Any]] = list(result.history)
        self.bestEpoch = result.best_epoch
        self.precision = result.precision
        self.stopped = result.stopped
        self.warnings = list(result.warnings)
        self.seconds = result.seconds

    def to_pandas(self) -> pd.DataFrame:
        """The history as a DataFrame, one row for each epoch."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self, *metrics: str) -> Any:
        """Draw metrics over the epochs; returns matplotlib Axes.

        Args:
            metrics: columns of the history; by default the training loss and all validation metrics.
        """
        import matplotlib.pyplot as plt

        rows = self.to_pandas()
        names = metrics or [name for name in rows.columns if name == "train_loss" or name.startswith("val_")]
        _, axes = plt.subplots()
        for name in names:
            axes.plot(rows["epoch"], rows[name], marker="o", label=name)
        axes.axvline(self.bestEpoch, linestyle=":", color="grey", label="best epoch")
        axes.set_xlabel("epoch")
        axes.legend()
        return axes

    def __repr__(self) -> str:
        shown = [name for name in self.history[-1] if name == "train_loss" or name.startswith("val_")]
        lines = [f"TrainingSummary: {len(self.history)} epochs, best {self.bestEpoch}, {self.precision}"]
        lines += [
            f"  epoch {row['epoch']}: " + ", ".join(f"{name} {_number(row[name])}" for name in shown)
            for row in self.history
        ]
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(warning)}</p>" for warning in self.warnings)
        return f"{self.to_pandas().to_html(index=False)}{notes}"


def _number(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)
