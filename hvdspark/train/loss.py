"""Losses as numbers for each row.

A rank holds a part of each global batch, so a loss is a numerator for each row, and what the sum of the numerators over
the rows of *all* ranks is divided by: for a mean `sum_i w_i l_i / sum_i w_i` with the weights of the rows, or the
weights that rows have by their labels (`torch_loss`), or nothing. A loss that only gives a mean over its rows is taken
as that mean for each of them, which has the same gradient as long as there are no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvdspark.artifact.classes import BINARY, CLASS_INDEX
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import ranks_where
from hvdspark.errors import ConfigurationError
from hvdspark.train.loss_term import Part, Term, per_row, same_layout
from hvdspark.train.torch_loss import LABELS, NOTHING

_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "bce_with_logits": torch.sigmoid,
    "bce": lambda output: output,
    "cross_entropy": lambda output: torch.softmax(output, dim=1),
    "nll": torch.exp,
}
_SUITABLE_METRICS = {
    **dict.fromkeys(BINARY, ("logloss", "auc", "accuracy")),
    **dict.fromkeys(CLASS_INDEX, ("logloss", "accuracy")),
    **dict.fromkeys(("mse", "l1", "huber", "smooth_l1"), ("mse", "mae")),
}


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
                where="loss_weights",
            )
        self._weights = tuple(loss_weights) or (1.0,) * len(labels)
        parts = list(loss) if several else [loss]
        known = minimums or {}
        smallest = [known.get(label) for label in labels] if several else [_least([known.get(x) for x in labels])]
        self._terms = [Term(part, device, least) for part, least in zip(parts, smallest, strict=True)]
        # A plain callable may see all outputs and labels; a named loss or a torch loss sees one pair at a time.
        self._may_be_joint = not several and self._terms[0].parsed.is_plain_callable
        self._joint = self._may_be_joint and len(labels) > 1
        self._takes_tuples = False
        if self._joint and loss_weights:
            raise ConfigurationError("one callable for all outputs weighs them itself", where="loss_weights")
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
                hint="return a tuple in the order of the labels, or give one callable taking (outputs, labels)"
                if len(self._labels) > 1
                else "return that tensor alone which the label is for, or give one callable taking (outputs, labels)",
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

    def check_ends(self, outputs: Sequence[Tensor], ends: Mapping[str, Tensor]) -> None:
        """DataError where the smallest or the largest value of a label is none that its loss can take.

        Args:
            outputs: of some rows.
            ends: [2] each, by the label's name, of those that are known.
        """
        for number, term in enumerate(() if self._takes_tuples else self._terms):
            if (name := self._labels[number]) in ends:
                term.check_ends(outputs[self._first_output(number)], ends[name], name)

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
            labels = [same_layout(label, output) for label, output in zip(labels, outputs, strict=True)]
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
        rows = per_row(value, len(labels[0]), weighted, parsed)
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


def _least(minimums: Sequence[float | None]) -> float | None:
    known = [minimum for minimum in minimums if minimum is not None]
    return min(known) if known and len(known) == len(minimums) else None
