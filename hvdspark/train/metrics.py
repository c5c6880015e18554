"""Validation metrics whose state is a vector of sums, so that one fused allreduce for each epoch serves them all.

No metric talks to other ranks. Each one adds up over the rank's batches; the loop sums the vectors over the ranks and
asks for the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hvdspark.artifact.forward import as_prediction
from hvdspark.checks import one_of
from hvdspark.errors import ConfigurationError

Probabilities = Callable[[Tensor], Tensor] | None

AUC_BINS = 1 << 16
_AUC_CENTRE = 8.0


class Metric(Protocol):
    """One number from sums.

    Attributes:
        sums: float64 [n], what this rank has added up.
    """

    sums: Tensor

    def update(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        """Add a batch: output [rows, ...], label [rows, ...], weight float [rows]."""
        ...

    def value(self, sums: Tensor) -> tuple[float, str | None]:
        """The metric from the sums of all ranks (on CPU), and a warning where it cannot be trusted."""
        ...


class WeightedMean:
    """Weighted mean over the rows of something that each row has by itself."""

    def __init__(self, of_rows: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._of_rows = of_rows
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        rows = self._of_rows(output, label).double()
        if rows.dim() > 1:
            rows = rows.flatten(1).mean(dim=1)
        weight = weight.double()
        self.sums += torch.stack([(rows * weight).sum(), weight.sum()]).cpu()

    def value(self, sums: Tensor) -> tuple[float, str | None]:
        if sums[1] == 0:
            return math.nan, "the validation rows have no weight"
        mean = (sums[0] / sums[1]).item()
        return mean, None if math.isfinite(mean) else "not finite: look for NaN in the validation rows"


class AUC:
    """Area under the ROC curve from two histograms of the scores, in memory that does not grow with the rows.

    Scores s are put into 65,536 bins that are equally wide in s / (8 + |s|): 0.00024 wide at s = 0 and 0.0022 at
    |s| = 16, with no end at which scores would pile up. Probabilities are turned into logits first, which keeps their
    order. Rows in one bin count as tied (half a pair each); true ties do as well, so they cost nothing. The value is
    therefore off by at most half of the (weighted) share of positive-negative pairs that fall in one bin, a number the
    histograms themselves give.

    Args:
        logits: from the output to a score that is spread like a logit.
    """

    def __init__(self, logits: Callable[[Tensor], Tensor]) -> None:
        self._logits = logits
        self.sums = torch.zeros(2 * AUC_BINS, dtype=torch.float64)

    def update(self, output: Tensor, label: Tensor, weight: Tensor) -> None:
        score, label = as_prediction(self._logits(output)).double().clamp(-1e9, 1e9), as_prediction(label)
        _check_same_shape("auc", score, label)
        squashed = score / (_AUC_CENTRE + score.abs())
        bins = ((squashed + 1.0) * (AUC_BINS / 2)).long().clamp(0, AUC_BINS - 1)
        bins += (label > 0.5).long() * AUC_BINS
        self.sums += torch.bincount(bins, weights=weight.double(), minlength=2 * AUC_BINS).cpu()

    def value(self, sums: Tensor) -> tuple[float, str | None]:
        negative, positive = sums[:AUC_BINS], sums[AUC_BINS:]
        pairs = (negative.sum() * positive.sum()).item()
        if pairs == 0:
            return math.nan, "AUC is not defined: the validation rows are all of one class"
        below = negative.cumsum(0) - negative
        tied = (positive * negative).sum().item()
        error = 0.5 * tied / pairs
        warning = None
        if error > 1e-2:
            warning = f"AUC may be off by up to {error:.1e}: that many of the scores are tied or nearly so"
        return ((positive * below).sum().item() + 0.5 * tied) / pairs, warning


METRICS = ("logloss", "auc", "accuracy", "mse", "mae")


def make_metric(name: str, probabilities: Probabilities, loss_has_logits: bool) -> Metric:
    """The metric of that name.

    Args:
        name: one of METRICS.
        probabilities: turns an output into probabilities ([rows], or [rows, classes]); None if unknown.
        loss_has_logits: whether outputs are logits, which AUC then takes as they are.

    Raises:
        ConfigurationError: unknown name, or a metric that needs probabilities where nothing says how to get them.
    """
    one_of("metric", name, METRICS, "metrics")
    if name == "mse":
        return WeightedMean(lambda output, label: _difference(output, label) ** 2)
    if name == "mae":
        return WeightedMean(lambda output, label: _difference(output, label).abs())
    if name == "auc":
        if probabilities is None or loss_has_logits:
            return AUC(lambda output: output)
        return AUC(lambda output: torch.logit(_of_second_class(probabilities(output)).double()))
    if probabilities is None:
        raise ConfigurationError(
            f"{name} needs to know how the output becomes a probability",
            value=name,
            where="metrics",
            hint="use a loss by name, or set Program.probabilities (torch.sigmoid for logits)",
        )
    chosen = probabilities
    return WeightedMean(lambda output, label: (_logloss if name == "logloss" else _correct)(chosen(output), label))


def metric_names(metrics: Sequence[str], labels: Sequence[str]) -> list[tuple[str, int, str]]:
    """(history key, label position, metric) for each metric and label; the label is named where there are several."""
    return [
        (f"val_{metric}" if len(labels) == 1 else f"val_{metric}_{label}", position, metric)
        for position, label in enumerate(labels)
        for metric in metrics
    ]


def _difference(output: Tensor, label: Tensor) -> Tensor:
    prediction, label = as_prediction(output).double(), as_prediction(label).double()
    _check_same_shape("mse and mae", prediction, label)
    return prediction - label


def _check_same_shape(metric: str, output: Tensor, label: Tensor) -> None:
    if output.shape != label.shape:
        raise ConfigurationError(
            f"{metric} needs an output and a label of the same shape",
            value=f"output {tuple(output.shape)}, label {tuple(label.shape)}",
            where="metrics",
        )


def _of_second_class(probability: Tensor) -> Tensor:
    """The probability of class 1 where there is one column for each of two classes."""
    return probability[:, 1] if probability.dim() == 2 and probability.shape[1] == 2 else probability


def _of_class(probability: Tensor, label: Tensor) -> Tensor:
    """Probability of each row's own class; [rows] or [rows, width] for independent binary outputs."""
    probability, label = as_prediction(probability).double(), as_prediction(label)
    if probability.dim() == 2 and label.dim() == 1:
        return probability.gather(1, label.long().unsqueeze(1)).squeeze(1)
    return torch.where(label > 0.5, probability, 1.0 - probability)


def _logloss(probability: Tensor, label: Tensor) -> Tensor:
    return -_of_class(probability, label).clamp(min=1e-15).log()


def _correct(probability: Tensor, label: Tensor) -> Tensor:
    probability, label = as_prediction(probability), as_prediction(label)
    if probability.dim() == 2 and label.dim() == 1:
        return probability.argmax(dim=1) == label.long()
    return (probability > 0.5) == (label > 0.5)
