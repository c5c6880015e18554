"""The metrics that a run asks for, with what its loss says about the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from hvdspark.train.loss import RowLoss
from hvdspark.train.metrics import Metric, make_metric, metric_names

Probabilities = Callable[[Tensor], Tensor]


def fresh_metric(name: str, position: int, loss: RowLoss, own: Probabilities | None) -> Metric:
    """A metric of label number `position` that has seen no rows.

    Args:
        own: turns an output into probabilities, where the loss does not say it.

    Raises:
        ConfigurationError: it does not fit the loss.
    """
    return make_metric(name, own or loss.probabilities(position), own is None and loss.has_logits(position))


def validation_keys(
    metrics: Sequence[str], labels: Sequence[str], has_validation: bool, loss: RowLoss, own: Probabilities | None
) -> tuple[str, ...]:
    """History keys of what validation computes, e.g. ("val_loss", "val_auc"); empty without validation rows.

    Args:
        own: as of `fresh_metric`.

    Raises:
        ConfigurationError: unknown metric, or one that does not fit the loss.
    """
    names = metric_names(metrics, labels)
    for _, position, metric in names:
        fresh_metric(metric, position, loss, own)
    return ("val_loss", *(key for key, _, _ in names)) if has_validation else ()
