"""What a history says of an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hvdspark.errors import DataError
from hvdspark.train.run import Run
from hvdspark.train.train_progress import Row


def history_row(run: Run, sums: Sequence[float], optimizer: torch.optim.Optimizer, seconds: float) -> Row:
    """An epoch's row without validation: the loss is torch's reduction over all rows of the epoch, each as it was when
    its batch came.

    Args:
        sums: of all ranks, as `RowLoss.value` takes them.
        seconds: wall time of the epoch's training.

    Raises:
        DataError: no row counts; the same on every rank.
    """
    spec, loss = run.spec, run.loss
    for kind, counted in zip(loss.divisors, sums[1::2], strict=True):
        if counted == 0 and spec.weight is not None:
            raise DataError("the weights of all training rows are 0", where=spec.weight)
        if counted == 0:
            raise DataError(f"the loss ignores the {kind} of all training rows", where=", ".join(spec.labels))
    rows = spec.dataset.train_rows
    return {
        "epoch": run.progress.epochs,
        "train_loss": loss.value(sums),
        "learning_rate": float(optimizer.param_groups[0].get("lr", float("nan"))),
        "rows": rows,
        "seconds": seconds,
        "rows_per_s": rows / seconds,
    }
