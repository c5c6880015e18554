"""One loss of one label, as a numerator for each row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvdspark.artifact.classes import BINARY
from hvdspark.checks import label_in_words, may_be_told
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.train.torch_loss import LABELS, ROWS, Parsed, parse, row_weights, without_ignored


class Part(NamedTuple):
    """Rows whose numerators have one divisor.

    Attributes:
        numerator: [rows], differentiable; how much of the loss each row brings before it is divided.
        weight: [rows], what each row adds to the divisor; None where that is 1.
    """

    numerator: Tensor
    weight: Tensor | None

    def counted(self) -> float:
        """What these rows add to the divisor."""
        return float(len(self.numerator)) if self.weight is None else self.weight.sum().item()


class Term:
    """One loss of one label.

    Attributes:
        outputs: how many outputs of the module it takes.
    """

    def __init__(self, loss: Any, device: str, minimum: float | None) -> None:
        self.parsed = without_ignored(parse(loss, device), minimum)
        self.outputs = 1 if self.parsed.form is None else self.parsed.form.outputs

    def rows(self, outputs: tuple[Tensor, ...], label: Tensor, name: str, weighted: bool) -> Part:
        """The loss of each row; `name` is the label's."""
        parsed = self.parsed
        target = self._target(outputs[0], label, name)
        for option in parsed.row_options:
            _check_not_for_rows(option, outputs[0])
        if parsed.form is None:
            value = parsed.call(outputs[0], target)
        else:
            others = (same_layout(output, outputs[0]) for output in outputs[1:])
            value = parsed.form((outputs[0], *others), target, parsed.call)
        numerator = per_row(value, len(label), weighted, parsed)
        if parsed.divisor != LABELS:
            return Part(numerator, None)
        if target.is_floating_point():  # probabilities of all classes: none is ignored
            return Part(numerator, torch.full_like(numerator, value[:1].numel(), requires_grad=False))
        weight = row_weights(parsed, target)
        return Part(numerator, weight.flatten(1).sum(dim=1) if weight.dim() > 1 else weight)

    def check_ends(self, output: Tensor, ends: Tensor, name: str) -> None:
        """DataError where the smallest or the largest of all labels is none that this loss can take.

        Args:
            output: of some rows.
            ends: [2], of labels that are one number each.
        """
        form = self.parsed.form
        if form is not None and form.target in ("class", "classes"):
            self._target(output, ends, name)
        elif self.parsed.shape_is_known and self.parsed.name in BINARY:
            _check_range(ends, 0.0, 1.0, name, str(self.parsed.name))

    def _target(self, output: Tensor, label: Tensor, name: str) -> Tensor:
        """The label as this loss needs it: class indices int64, else the output's dtype and shape."""
        parsed = self.parsed
        kind = "values" if parsed.form is None else parsed.form.target
        if kind == "class_list":
            return _class_numbers(label, -1, output.shape[-1] - 1, name, "MultiLabelMarginLoss")
        if kind == "class" or (kind == "classes" and not (label.is_floating_point() and label.shape == output.shape)):
            loss = parsed.name or "MultiMarginLoss"
            target = label.squeeze(1) if label.dim() == 2 and label.shape[1] == 1 else label
            classes = output.shape[1] if output.dim() > 1 else 0
            if classes < 2:
                raise ConfigurationError(
                    f"{loss} needs an output of one column for each class",
                    value=f"shape {tuple(output.shape)}",
                    where=name,
                    hint='for two classes and one output use "bce_with_logits"',
                )
            return _class_numbers(target, 0, classes - 1, name, f"{loss} with {classes} outputs", parsed.ignore_index)
        if kind == "row":
            return label.reshape(len(label)).to(output.dtype) if label.numel() == len(label) else label
        target = same_layout(label, output)
        if not parsed.shape_is_known:
            return target
        if target.shape != output.shape:
            raise ConfigurationError(
                "output and label must have the same shape",
                value=f"output {tuple(output.shape)}, label {tuple(label.shape)}",
                where=name,
                hint="let the module return what a label holds in a row; a number for each class is for cross_entropy",
            )
        target = target.to(output.dtype)
        if parsed.name in BINARY:
            _check_range(target, 0.0, 1.0, name, str(parsed.name))
        return target


def _check_not_for_rows(option: Tensor, output: Tensor) -> None:
    # Broadcast from the right: a dimension that meets the rows is one number for each row of one batch.
    if option.dim() >= output.dim() and option.shape[-output.dim()] != 1:
        raise ConfigurationError(
            "a weight of the loss has one number for each row of one batch, and batches are cut among ranks",
            value=f"weight {tuple(option.shape)}, output {tuple(output.shape)}",
            where="loss",
            hint="put the weights of rows into a column and set weight_column",
        )


def _class_numbers(target: Tensor, low: int, high: int, name: str, loss: str, ignored: int | None = None) -> Tensor:
    if target.is_floating_point():
        _check_whole(target, name, loss.split(" with ")[0])
    target = target.to(torch.int64)
    _check_range(target if ignored is None else target[target != ignored], low, high, name, loss)
    return target


def same_layout(label: Tensor, output: Tensor) -> Tensor:
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
            value="a fraction" if bool(fractional.isfinite().all()) else math.nan,
            where=name,
            hint="they are the numbers of classes; for probabilities give an array of one for each class",
        )


def _check_range(target: Tensor, low: float, high: float, name: str, loss: str) -> None:
    if target.numel() == 0:
        return
    smallest, largest = target.min().item(), target.max().item()
    wrong = smallest if smallest < low else largest
    if smallest < low or largest > high:
        raise DataError(
            f"labels of {loss} must lie in [{low:g}, {high:g}]",
            value=wrong if may_be_told(wrong) else label_in_words(wrong),
            where=name,
            hint=_to_range(smallest, low),
        )


def _to_range(smallest: float, low: float) -> str:
    """What may have been meant by labels that are out of range."""
    if smallest < low:
        return "map the label to this range before training: (F.col(label) > 0).cast('int') makes 0 and 1 of -1 and 1"
    if smallest > low:
        return "classes count from 0: subtract 1 from labels that count from 1"
    return "map the label to this range before training; for a label that is a quantity use a loss such as mse"


def per_row(value: Tensor, rows: int, weighted: bool, parsed: Parsed) -> Tensor:
    """The losses of rows, [rows], of what a loss returned: a number, one for each row, or more.

    Raises:
        ConfigurationError: it is none of that, or a single number where rows are weighed.
    """
    if not isinstance(value, Tensor):
        raise ConfigurationError("the loss must return a tensor", value=type(value).__name__, where="loss")
    if value.dim() == 0:
        if weighted:
            raise ConfigurationError(
                "row weights need a loss for each row, and this loss returns a single mean",
                where="loss",
                hint='let it take an argument reduction and return [rows] for reduction="none", or drop weight_column',
            )
        return value.expand(rows) if parsed.divisor == ROWS else value.expand(rows) / rows
    if value.shape[0] != rows:
        raise ConfigurationError(
            f"the loss must return a scalar or one value for each of the {rows} rows",
            value=f"shape {tuple(value.shape)}",
            where="loss",
            hint="return [rows], or their mean as a number without dimensions: loss.mean(), not loss.mean().reshape(1)",
        )
    if value.dim() == 1:
        return value
    elements = value.flatten(1)
    return elements.mean(dim=1) if parsed.over == "mean" else elements.sum(dim=1)
