"""Losses as one number for each row.

Weights and exact global means both need the loss of every row: the mean over a global batch is
`sum_i w_i l_i / sum_i w_i`, with sums over the rows of all ranks. A loss that only gives a mean over its rows is taken
as that mean for each of them, which has the same gradient as long as there are no weights.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from hvdspark.errors import ConfigurationError, DataError


def _binary_cross_entropy(output: Tensor, target: Tensor, reduction: str) -> Tensor:
    # torch raises on NaN here, in words that do not name the cause; divergence is the loop's to report.
    if torch.isnan(output).any():
        return torch.full_like(output, torch.nan)
    return F.binary_cross_entropy(output, target, reduction=reduction)


_BY_NAME: dict[str, Callable[..., Tensor]] = {
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "bce": _binary_cross_entropy,
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "smooth_l1": F.smooth_l1_loss,
    "poisson_nll": F.poisson_nll_loss,
}
_NAME_OF_MODULE: dict[type[nn.Module], str] = {
    nn.BCEWithLogitsLoss: "bce_with_logits",
    nn.BCELoss: "bce",
    nn.CrossEntropyLoss: "cross_entropy",
    nn.NLLLoss: "nll",
    nn.MSELoss: "mse",
    nn.L1Loss: "l1",
    nn.HuberLoss: "huber",
    nn.SmoothL1Loss: "smooth_l1",
}
_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "bce_with_logits": torch.sigmoid,
    "bce": lambda output: output,
    "cross_entropy": lambda output: torch.softmax(output, dim=1),
    "nll": torch.exp,
}
_CLASS_INDEX = ("cross_entropy", "nll")
_SUITABLE_METRICS = {
    **dict.fromkeys(("bce_with_logits", "bce"), ("logloss", "auc", "accuracy")),
    **dict.fromkeys(_CLASS_INDEX, ("logloss", "accuracy")),
    **dict.fromkeys(("mse", "l1", "huber", "smooth_l1"), ("mse", "mae")),
}
_ZERO_TO_ONE = ("bce_with_logits", "bce")


class RowLoss:
    """The run's loss: outputs and labels -> float [rows].

    A single plain callable is called as loss(output, label) where the module returns one output and there is one label.
    Where there are several labels, or the module does not return one output for each label (a click and its
    confidence, one label), it is called once, as loss(outputs, labels) with a tuple of each.

    Args:
        loss: a name, a torch loss module, a callable, or a list of these, one for each output.
        labels: label columns, in the order of the outputs.
        loss_weights: factor of each output's loss; empty means 1.
        device: where a loss module's own tensors (class weights) go.

    Raises:
        ConfigurationError: unknown name, wrong number of losses or loss weights.
    """

    def __init__(self, loss: Any, labels: Sequence[str], loss_weights: Sequence[float], device: str) -> None:
        self._labels = tuple(labels)
        several = isinstance(loss, list | tuple)
        if several and len(loss) != len(labels):
            raise ConfigurationError(
                f"there must be one loss for each of the {len(labels)} labels", value=len(loss), where="loss"
            )
        if loss_weights and len(loss_weights) != len(labels):
            raise ConfigurationError(
                f"there must be one weight for each of the {len(labels)} labels",
                value=list(loss_weights),
                where="lossWeights",
            )
        self._weights = tuple(loss_weights) or (1.0,) * len(labels)
        parts = list(loss) if several else [loss]
        self._terms = [_Term(part, device) for part in parts]
        # A plain callable may see all outputs and labels; a named loss or a torch loss sees one pair at a time.
        self._may_be_joint = not several and self._terms[0].is_plain_callable
        self._joint = self._may_be_joint and len(labels) > 1
        if self._joint and loss_weights:
            raise ConfigurationError("one callable for all outputs weighs them itself", where="lossWeights")
        if not several and not self._joint:
            self._terms = self._terms * len(labels)

    def __call__(self, outputs: Sequence[Tensor], labels: Sequence[Tensor], *, weighted: bool) -> Tensor:
        """Loss of each row, [rows], differentiable.

        Args:
            outputs: [rows, ...] each.
            labels: [rows] or [rows, width] each, as the loader gives them.
            weighted: whether the caller will weigh the rows.

        Raises:
            ConfigurationError: shapes that do not fit, or row weights with a loss that has no loss for each row.
            DataError: a class index or a probability out of range.
        """
        if self._joint or (self._may_be_joint and len(outputs) != len(self._labels)):
            return self._joint_rows(outputs, labels, weighted)
        if len(outputs) != len(self._labels):
            raise ConfigurationError(
                f"the module must return one output for each of the {len(self._labels)} labels",
                value=f"{len(outputs)} outputs",
                where=", ".join(self._labels),
                hint="return a tuple in the order of the labels, or give one callable taking (outputs, labels)",
            )
        total: Tensor | None = None
        for term, factor, output, label, name in zip(
            self._terms, self._weights, outputs, labels, self._labels, strict=True
        ):
            rows = _per_row(term.call(output, term.target(output, label, name)), len(label), weighted)
            rows = rows if factor == 1.0 else rows * factor
            total = rows if total is None else total + rows
        assert total is not None
        return total

    def _joint_rows(self, outputs: Sequence[Tensor], labels: Sequence[Tensor], weighted: bool) -> Tensor:
        if len(outputs) == len(labels):
            labels = [_same_layout(label, output) for label, output in zip(labels, outputs, strict=True)]
        try:
            value = self._terms[0].call(tuple(outputs), tuple(labels))
        except (TypeError, AttributeError) as error:  # what a callable for one output makes of tuples
            raise ConfigurationError(
                f"the loss failed when called with the tuples (outputs, labels): {type(error).__name__}: {error}",
                value=f"{len(outputs)} outputs and {len(labels)} labels",
                where="loss",
                hint="a callable for one output and one label needs a module that returns one output, or a list of "
                "callables, one for each label",
            ) from error
        rows = _per_row(value, len(labels[0]), weighted)
        return rows if self._joint else rows * self._weights[0]

    def suitable_metrics(self) -> tuple[str, ...]:
        """The metrics that make sense for every label; none where a loss is not known by name."""
        if self._joint:
            return ()
        suitable = [_SUITABLE_METRICS.get(term.name or "", ()) for term in self._terms]
        return tuple(metric for metric in suitable[0] if all(metric in others for others in suitable))

    def probabilities(self, position: int) -> Callable[[Tensor], Tensor] | None:
        """What turns output number `position` into probabilities; None where the loss does not say."""
        name = None if self._joint else self._terms[position].name
        return _PROBABILITIES.get(name or "")

    def has_logits(self, position: int) -> bool:
        """Whether output number `position` is a logit."""
        return not self._joint and self._terms[position].name == "bce_with_logits"


class _Term:
    """One loss of one output."""

    def __init__(self, loss: Any, device: str) -> None:
        self.name: str | None = None
        self.is_plain_callable = False
        self._shape_is_known = True
        if isinstance(loss, str):
            if loss not in _BY_NAME:
                raise ConfigurationError(
                    "unknown loss", value=loss, where="loss", hint=f"one of {', '.join(sorted(_BY_NAME))}"
                )
            self.name, self.call = loss, _without_reduction(_BY_NAME[loss])
        elif isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
            own = copy.deepcopy(loss).to(device)
            own.reduction = "none"  # type: ignore[assignment]
            self.call = own
            self.name = next((_NAME_OF_MODULE[cls] for cls in type(loss).__mro__ if cls in _NAME_OF_MODULE), None)
            self._shape_is_known = isinstance(loss, _Loss)
        elif callable(loss):
            self.call = _without_reduction(loss)
            self.is_plain_callable, self._shape_is_known = True, False
        else:
            raise ConfigurationError(
                "the loss must be a name, a torch loss module or a callable", value=type(loss).__name__, where="loss"
            )

    def target(self, output: Tensor, label: Tensor, name: str) -> Tensor:
        """The label as this loss needs it: class indices int64 [rows, ...], else the output's dtype and shape."""
        if self.name in _CLASS_INDEX and not (label.is_floating_point() and label.shape == output.shape):
            target = label.squeeze(1) if label.dim() == 2 and label.shape[1] == 1 else label
            classes = output.shape[1] if output.dim() > 1 else 0
            if classes < 2:
                raise ConfigurationError(
                    f"{self.name} needs an output of one column for each class",
                    value=f"shape {tuple(output.shape)}",
                    where=name,
                    hint='for two classes and one output use "bce_with_logits"',
                )
            if target.is_floating_point():
                _check_whole(target, name, str(self.name))
            target = target.to(torch.int64)
            ignored = getattr(self.call, "ignore_index", -100)
            _check_range(target[target != ignored], 0, classes - 1, name, f"{self.name} with {classes} outputs")
            return target
        target = _same_layout(label, output)
        if not self._shape_is_known:
            return target
        if target.shape != output.shape:
            raise ConfigurationError(
                "output and label must have the same shape",
                value=f"output {tuple(output.shape)}, label {tuple(label.shape)}",
                where=name,
            )
        target = target.to(output.dtype)
        if self.name in _ZERO_TO_ONE:
            _check_range(target, 0.0, 1.0, name, str(self.name))
        return target


def _same_layout(label: Tensor, output: Tensor) -> Tensor:
    """The label in the output's shape where the two differ only by dimensions of size 1.

    Without this, [rows] against [rows, 1] quietly broadcasts to [rows, rows].
    """
    if [size for size in label.shape[1:] if size != 1] == [size for size in output.shape[1:] if size != 1]:
        return label.reshape(output.shape)
    return label


def _check_whole(target: Tensor, name: str, loss: str) -> None:
    # Turned into int64 as they are, 0.5 and 1.5 would quietly be the classes 0 and 1.
    fractional = target[target != target.floor()]
    if fractional.numel():
        raise DataError(
            f"labels of {loss} must be whole numbers",
            value=fractional[0].item(),
            where=name,
            hint="they are the numbers of classes; for probabilities give an array of one for each class",
        )


def _check_range(target: Tensor, low: float, high: float, name: str, loss: str) -> None:
    if target.numel() == 0:
        return
    smallest, largest = target.min().item(), target.max().item()
    if smallest < low or largest > high:
        raise DataError(
            f"labels of {loss} must lie in [{low:g}, {high:g}]",
            value=smallest if smallest < low else largest,
            where=name,
            hint="map the label to this range before training",
        )


def _without_reduction(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss` with reduction="none" where it has such an argument."""
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return loss
    if "reduction" not in parameters:
        return loss
    return lambda output, target: loss(output, target, reduction="none")


def _per_row(value: Tensor, rows: int, weighted: bool) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigurationError("the loss must return a tensor", value=type(value).__name__, where="loss")
    if value.dim() == 0:
        if weighted:
            raise ConfigurationError(
                "row weights need a loss for each row, and this loss returns a single mean",
                where="loss",
                hint='let it take an argument reduction and return [rows] for reduction="none", or drop weightCol',
            )
        return value.expand(rows)
    if value.shape[0] != rows:
        raise ConfigurationError(
            f"the loss must return a scalar or one value for each of the {rows} rows",
            value=f"shape {tuple(value.shape)}",
            where="loss",
        )
    return value.reshape(rows, -1).mean(dim=1) if value.dim() > 1 else value
