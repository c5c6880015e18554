"""The metrics that a run asks for, with what its loss says about the outputs."""

from __future__ import annotations

from collections.abc import Sequence

from hvdspark.train.loss import RowLoss
from hvdspark.train.metrics import Metric, make_metric, metric_names
from hvdspark.train.program import Program


def fresh_metric(name: str, position: int, program: Program, loss: RowLoss) -> Metric:
    """A metric of label number `position` that has seen no rows. ConfigurationError where it does not fit the loss."""
    own = program.probabilities
    return make_metric(name, own or loss.probabilities(position), own is None and loss.has_logits(position))


def validation_keys(
    metrics: Sequence[str], labels: Sequence[str], has_validation: bool, program: Program, loss: RowLoss
) -> tuple[str, ...]:
    """History keys of what validation computes, e.g. ("val_loss", "val_auc"); empty without validation rows.

    Raises:
        ConfigurationError: unknown metric, or one that does not fit the loss.
    """
    names = metric_names(metrics, labels)
    for _, position, metric in names:
        fresh_metric(metric, position, program, loss)
    return ("val_loss", *(key for key, _, _ in names)) if has_validation else ()
