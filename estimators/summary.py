"""What happened during a fit: `model.summary`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hvdspark import notebook
from hvdspark.embedding.plan.sharding import format_bytes
from hvdspark.errors import ConfigurationError, DependencyError
from hvdspark.train.program import TrainResult

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_LOSSES = ("train_loss", "val_loss")
_PACE = ("learning_rate", "rows", "rows_per_s", "seconds")


class TrainingSummary:
    """History of a fit, one row (a dict) for each epoch. Made of the `result` of training.

    Attributes:
        history: rows with epoch, train_loss, val_* metrics, learning_rate, rows, seconds, rows_per_s, seconds by phase.
        bestEpoch: the epoch whose weights the model has.
        precision: "float32" or "bfloat16", the arithmetic that training steps used.
        stopped: why training ended before the last epoch: "patience", "callback" or None.
        warnings: sentences the user should read.
        seconds: wall seconds by phase of the fit on rank 0.
        warmStart: where the fit began with a trained model (warmStartFrom), a dict: its "source"; what was "kept" of
            it; what is "fresh", by name with the reason; what was "dropped". Else None.
        goodput: share of the wall time from the launch of the ranks to the end, restarts included, in which steps were
            computed that are in the weights; None for models of hvdspark before 0.2.
        restarts: how often the ranks were started again after a failure.
        recoverySeconds: seconds from each failure to the next step.
        stragglers: by rank, the number of epochs in which the others waited for it; of ranks for which they did.
        inputStallSeconds: seconds in which rank 0 waited for batches.
        checkpointSeconds: seconds for which training stood still for checkpoints.
        memoryLimit: bytes that a rank might use; None where it had no limit, as with a GPU.
        memorySetting: what one raises to give it more, e.g. "spark.executor.memoryOverhead"; "" without a limit.
        tableBytesRead: bytes of sharded tables, in all checkpoints from which a generation of ranks went on.
        tableBytesMoved: of these, those that came from the store, and not from what the ranks' hosts had.
    """

    def __init__(self, result: TrainResult) -> None:
        self.history: list[dict[str, Any]] = list(result.history)
        self.bestEpoch = result.best_epoch
        self.precision = result.precision
        self.stopped = result.stopped
        self.warnings = list(result.warnings)
        self.seconds = result.seconds
        self.warmStart = result.warm_start
        measured = result.goodput or {}
        self.goodput: float | None = measured.get("goodput")
        self.restarts = int(measured.get("restarts", 0))
        self.recoverySeconds: list[float] = list(measured.get("recoveries_s", ()))
        self.stragglers = {int(rank): int(times) for rank, times in measured.get("stragglers", {}).items()}
        self.inputStallSeconds = float(measured.get("input_stall_s", 0.0))
        self.checkpointSeconds = float(measured.get("checkpoint_s", 0.0))
        self.memoryLimit = None if result.memory is None else result.memory.bytes
        self.memorySetting = "" if result.memory is None else result.memory.setting
        self.tableBytesRead = int(measured.get("tables_read_bytes", 0))
        self.tableBytesMoved = int(measured.get("tables_moved_bytes", 0))

    def to_pandas(self) -> pd.DataFrame:
        """The history as a DataFrame, one row for each epoch."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self, *metrics: str) -> Axes:
        """Draw metrics over the epochs; returns matplotlib Axes.

        Args:
            metrics: columns of the history; by default the training loss and all validation metrics.

        Raises:
            ConfigurationError: the history has no such column.
            DependencyError: matplotlib is not installed.
        """
        names = metrics or self._curves()
        if unknown := [name for name in names if name not in self.history[-1]]:
            hint = f"the history has {', '.join(self.history[-1])}"
            raise ConfigurationError("no column of the history", value=unknown, where="metrics", hint=hint)
        try:
            import matplotlib.pyplot as plt
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            hint = "pip install 'hvdspark[plot]'"
            raise DependencyError("plots are drawn by matplotlib", value=str(error), hint=hint) from error

        epochs = [row["epoch"] for row in self.history]
        _, axes = plt.subplots()
        for name in names:
            axes.plot(epochs, [row.get(name, math.nan) for row in self.history], marker="o", label=name)
        axes.axvline(self.bestEpoch, linestyle=":", color="grey", label="best epoch")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
        return axes

    def __repr__(self) -> str:
        shown = self._curves()
        lines = [self._title()]
        lines += [
            f"  epoch {row['epoch']}: " + ", ".join(f"{name} {_number(row[name])}" for name in shown)
            for row in self.history
        ]
        lines += [f"  {text}" for text in self._of_ranks()]
        return "\n".join(lines + [f"  warning: {warning}" for warning in self.warnings])

    def _repr_html_(self) -> str:
        shown = notebook.once({name: [row.get(name, math.nan) for row in self.history] for name in self._curves()})
        losses = [name for name in shown if name in _LOSSES]
        columns = [name for name in ("epoch", *shown, *_PACE) if name in self.history[-1]]
        return notebook.block(
            notebook.line(self._title(), strong=True),
            *(self._drawn(names) for names in (losses, [name for name in shown if name not in losses])),
            notebook.table(
                columns, [[row.get(name) for name in columns] for row in self.history], strong=self.bestEpoch
            ),
            notebook.line(f"time of rank 0: {_shares(self.seconds)}"),
            *map(notebook.line, self._of_ranks()),
            *(notebook.line(f"warning: {warning}") for warning in self.warnings),
        )

    def _title(self) -> str:
        epochs = "1 epoch" if len(self.history) == 1 else f"{len(self.history)} epochs, best {self.bestEpoch}"
        text = f"TrainingSummary: {epochs}, {self.precision}"
        return text if self.stopped is None else f"{text}, stopped by {self.stopped}"

    def _of_ranks(self) -> list[str]:
        """What is known of time and memory, a line for each."""
        lines = [self._time()] if self.goodput is not None else []
        if self.memoryLimit is not None:
            lines.append(f"a rank might use {format_bytes(self.memoryLimit)} of memory ({self.memorySetting})")
        return lines

    def _time(self) -> str:
        """What the fit had of its time, and what took it."""
        parts = [f"goodput {100 * (self.goodput or 0.0):.0f} %", _times(self.restarts, "restart")]
        if self.recoverySeconds:
            parts.append(f"next step after {', '.join(f'{seconds:.1f}' for seconds in self.recoverySeconds)} s")
        parts += [f"rank {rank} late in {_times(times, 'epoch')}" for rank, times in self.stragglers.items()]
        parts.append(
            f"waited {self.inputStallSeconds:.1f} s for batches, {self.checkpointSeconds:.1f} s for checkpoints"
        )
        if self.tableBytesRead:
            share = 100 * self.tableBytesMoved / self.tableBytesRead
            parts.append(f"{format_bytes(self.tableBytesRead)} of tables read again, {share:.0f} % from the store")
        return ", ".join(parts)

    def _curves(self) -> list[str]:
        return [name for name in self.history[-1] if name == "train_loss" or name.startswith("val_")]

    def _drawn(self, names: list[str]) -> str:
        lines = {name: [row.get(name, math.nan) for row in self.history] for name in names}
        return notebook.curves([row["epoch"] for row in self.history], lines, self.bestEpoch)


def _shares(seconds: Mapping[str, float]) -> str:
    """{"loading": 1, "validation": 3} -> "validation 75 %, loading 25 %"."""
    total = sum(seconds.values()) or 1.0
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts)


def _times(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _number(value: Any) -> str:
    return f"{value:.5f}" if isinstance(value, float) else str(value)
