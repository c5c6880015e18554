"""Losses as numbers for each row.

A rank holds a part of each global batch, so a loss is a numerator for each row, and what the sum of the numerators over
the rows of *all* ranks is divided by: for a mean `sum_i w_i l_i / sum_i w_i` with the weights of the rows, or the
weights that rows have by their labels (`torch_loss`), or nothing. A loss that only gives a mean over its rows is taken
as that mean for each of them, which has the same gradient as long as there are no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import ranks_where
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.train.torch_loss import LABELS, NOTHING, ROWS, Parsed, parse, row_weights, without_ignored

_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "bce_with_logits": torch.sigmoid,
    "bce": lambda output: output,
    "cross_entropy": lambda output: torch.softmax(output, dim=1),
    "nll": torch.exp,
}
# Of labels between 0 and 1 and outputs of one number, for the second of two classes.
BINARY = ("bce_with_logits", "bce")
# Of one output for each class.
CLASS_INDEX = ("cross_entropy", "nll")
_SUITABLE_METRICS = {
    **dict.fromkeys(BINARY, ("logloss", "auc", "accuracy")),
    **dict.fromkeys(CLASS_INDEX, ("logloss", "accuracy")),
    **dict.fromkeys(("mse", "l1", "huber", "smooth_l1"), ("mse", "mae")),
}


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


def rows_that_count(
    outputs: Sequence[Tensor], labels: Sequence[Tensor], weight: Tensor
) -> tuple[Sequence[Tensor], list[Tensor], Tensor]:
    """Outputs, labels and weights of the rows with a weight above 0; an infinite loss of the others is no number
    that a weight of 0 could cancel."""
    counts = weight > 0
    if bool(counts.all()):
        return outputs, list(labels), weight
    return [output[counts] for output in outputs], [label[counts] for label in labels], weight[counts]


class RowLoss:
    """The run's loss: outputs and labels -> numerators and weights of rows.

    A single plain callable is called as loss(output, label) where the module returns one output and there is one label.
    Where there are several labels, or the module does not return one output for each label (a click and its
    confidence, one label), it is called once, as loss(outputs, labels) with a tuple of each.

    Args:
        loss: a name, a torch loss module, a callable, or a list of these, one for each output.
        labels: label columns, in the order of the outputs.
        loss_weights: factor of each output's loss; empty means 1.
        device: where a loss module's own tensors (class weights) go.
        minimums: the smallest value of each label where it is known: where none is ignored, ranks need not count them.

    Attributes:
        divisors: what the numerators of each `Part` are divided by, added up over the rows of all ranks: "rows" (the
            weights of the rows), "labels" (those times the weights that rows have by their labels) or "nothing".

    Raises:
        ConfigurationError: unknown name, wrong number of losses or loss weights.
    """

    def __init__(
        self,
        loss: Any,
        labels: Sequence[str],
        loss_weights: Sequence[float],
        device: str,
        minimums: Mapping[str, float | None] | None = None,
    ) -> None:
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
        known = minimums or {}
        smallest = [known.get(label) for label in labels] if several else [_least([known.get(x) for x in labels])]
        self._terms = [_Term(part, device, least) for part, least in zip(parts, smallest, strict=True)]
        # A plain callable may see all outputs and labels; a named loss or a torch loss sees one pair at a time.
        self._may_be_joint = not several and self._terms[0].parsed.is_plain_callable
        self._joint = self._may_be_joint and len(labels) > 1
        self._takes_tuples = False
        if self._joint and loss_weights:
            raise ConfigurationError("one callable for all outputs weighs them itself", where="lossWeights")
        if not several and not self._joint:
            self._terms = self._terms * len(labels)
        # Losses that are divided by the same are added up first; labels of several columns never weigh the same.
        self.divisors: tuple[str, ...] = ()
        self._place: list[int] = []
        for kind in (term.parsed.divisor for term in self._terms):
            if kind == LABELS or kind not in self.divisors:
                self.divisors += (kind,)
                self._place.append(len(self.divisors) - 1)
            else:
                self._place.append(self.divisors.index(kind))

    def __call__(self, outputs: Sequence[Tensor], labels: Sequence[Tensor], *, weighted: bool) -> list[Part]:
        """What each row brings to the loss: one part for each of `divisors`.

        Args:
            outputs: [rows, ...] each.
            labels: [rows] or [rows, width] each, as the loader gives them.
            weighted: whether the caller will weigh the rows.

        Raises:
            ConfigurationError: shapes that do not fit, or row weights with a loss that has no loss for each row.
            DataError: a class index or a probability out of range.
        """
        taken = self._first_output(len(self._labels))
        if self._joint or (self._may_be_joint and (self._takes_tuples or len(outputs) != taken)):
            self._takes_tuples = True
            return [self._joint_rows(outputs, labels, weighted)]
        if len(outputs) != taken:
            raise ConfigurationError(
                f"the module must return one output for each of the {len(self._labels)} labels"
                if taken == len(self._labels)
                else f"the loss takes {taken} outputs",
                value=f"{len(outputs)} outputs",
                where=", ".join(self._labels),
                hint="return a tuple in the order of the labels, or give one callable taking (outputs, labels)",
            )
        parts: list[Part | None] = [None] * len(self.divisors)
        for number, (term, place) in enumerate(zip(self._terms, self._place, strict=True)):
            first, label = self._first_output(number), labels[number]
            part = term.rows(tuple(outputs[first : first + term.outputs]), label, self._labels[number], weighted)
            factor, before = self._weights[number], parts[place]
            if factor != 1.0:
                part = Part(part.numerator * factor, part.weight)
            parts[place] = part if before is None else Part(before.numerator + part.numerator, before.weight)
        return [part for part in parts if part is not None]

    def agree_on_call(self, collective: Collective) -> None:
        """Collective. Where some rank gave a callable all outputs at once in training, it gets tuples everywhere, in
        validation too: there the module may return one output alone."""
        if self._may_be_joint and not self._joint:
            self._takes_tuples = bool(ranks_where(collective, self._takes_tuples, "train/loss/tuples"))

    def value(self, sums: Sequence[float]) -> float:
        """The loss from the sums of all rows: numerator and divisor of each part, one after the other; NaN where no row
        counts. The same definition for batches, epochs and validation: torch's reduction over all of these rows."""
        total = 0.0
        for kind, numerator, divisor in zip(self.divisors, sums[::2], sums[1::2], strict=True):
            if divisor == 0:
                return math.nan
            total += numerator if kind == NOTHING else numerator / divisor
        return total

    def _first_output(self, number: int) -> int:
        """Where the outputs of term `number` begin."""
        return sum(term.outputs for term in self._terms[:number])

    def output_of(self, position: int) -> int:
        """Which output is the prediction of label number `position`."""
        return position if self._joint else self._first_output(position)

    def _joint_rows(self, outputs: Sequence[Tensor], labels: Sequence[Tensor], weighted: bool) -> Part:
        if len(outputs) == len(labels):
            labels = [_same_layout(label, output) for label, output in zip(labels, outputs, strict=True)]
        parsed = self._terms[0].parsed
        try:
            value = parsed.call(tuple(outputs), tuple(labels))
        except (TypeError, AttributeError, ValueError) as error:  # what it makes of tuples, or of fewer outputs
            raise ConfigurationError(
                f"the loss failed when called with the tuples (outputs, labels): {type(error).__name__}: {error}",
                value=f"{len(outputs)} outputs and {len(labels)} labels",
                where="loss",
                hint="a callable for one output and one label needs a module that returns one output, or a list of "
                "callables, one for each label; in validation the module may return fewer outputs than in training",
            ) from error
        rows = _per_row(value, len(labels[0]), weighted, parsed)
        return Part(rows if self._joint else rows * self._weights[0], None)

    def suitable_metrics(self) -> tuple[str, ...]:
        """The metrics that make sense for every label; none where a loss is not known by name."""
        if self._joint:
            return ()
        suitable = [_SUITABLE_METRICS.get(term.parsed.name or "", ()) for term in self._terms]
        return tuple(metric for metric in suitable[0] if all(metric in others for others in suitable))

    def probabilities(self, position: int) -> Callable[[Tensor], Tensor] | None:
        """What turns output number `position` into probabilities; None where the loss does not say."""
        return _PROBABILITIES.get(self.name(position) or "")

    def name(self, position: int) -> str | None:
        """The name of the loss of label number `position`; None where it has none of those known here."""
        return None if self._joint else self._terms[position].parsed.name

    def has_logits(self, position: int) -> bool:
        """Whether output number `position` is a logit."""
        return self.name(position) == "bce_with_logits"


class _Term:
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
            others = (_same_layout(output, outputs[0]) for output in outputs[1:])
            value = parsed.form((outputs[0], *others), target, parsed.call)
        numerator = _per_row(value, len(label), weighted, parsed)
        if parsed.divisor != LABELS:
            return Part(numerator, None)
        if target.is_floating_point():  # probabilities of all classes: none is ignored
            return Part(numerator, torch.full_like(numerator, value[:1].numel(), requires_grad=False))
        weight = row_weights(parsed, target)
        return Part(numerator, weight.flatten(1).sum(dim=1) if weight.dim() > 1 else weight)

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
        target = _same_layout(label, output)
        if not parsed.shape_is_known:
            return target
        if target.shape != output.shape:
            raise ConfigurationError(
                "output and label must have the same shape",
                value=f"output {tuple(output.shape)}, label {tuple(label.shape)}",
                where=name,
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
            hint="put the weights of rows into a column and set weightCol",
        )


def _class_numbers(target: Tensor, low: int, high: int, name: str, loss: str, ignored: int | None = None) -> Tensor:
    if target.is_floating_point():
        _check_whole(target, name, loss.split(" with ")[0])
    target = target.to(torch.int64)
    _check_range(target if ignored is None else target[target != ignored], low, high, name, loss)
    return target


def _least(minimums: Sequence[float | None]) -> float | None:
    known = [minimum for minimum in minimums if minimum is not None]
    return min(known) if known and len(known) == len(minimums) else None


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


def _per_row(value: Tensor, rows: int, weighted: bool, parsed: Parsed) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigurationError("the loss must return a tensor", value=type(value).__name__, where="loss")
    if value.dim() == 0:
        if weighted:
            raise ConfigurationError(
                "row weights need a loss for each row, and this loss returns a single mean",
                where="loss",
                hint='let it take an argument reduction and return [rows] for reduction="none", or drop weightCol',
            )
        return value.expand(rows) if parsed.divisor == ROWS else value.expand(rows) / rows
    if value.shape[0] != rows:
        raise ConfigurationError(
            f"the loss must return a scalar or one value for each of the {rows} rows",
            value=f"shape {tuple(value.shape)}",
            where="loss",
        )
    if value.dim() == 1:
        return value
    elements = value.flatten(1)
    return elements.mean(dim=1) if parsed.over == "mean" else elements.sum(dim=1)
