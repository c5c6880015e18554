"""A classifier's scores as raw prediction, probability and class, in numpy, where there is no Spark.

`hvdspark.estimators.classes` says the same as expressions of a Spark plan, and a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Losses of labels between 0 and 1 and outputs of one number, for the second of two classes.
BINARY = ("bce_with_logits", "bce")
# Losses of one output for each class.
CLASS_INDEX = ("cross_entropy", "nll")

Floats = NDArray[np.float64]


def tells_classes(loss: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether a class can be read off what a module returns.

    Args:
        loss: its name, "" where it has none of those known.
        shapes: of the outputs, after the rows.
    """
    if len(shapes) != 1 or loss not in (*BINARY, *CLASS_INDEX):
        return False
    return shapes[0] in ((), (1,)) if loss in BINARY else len(shapes[0]) == 1


@dataclass(frozen=True)
class Classes:
    """What a classifier says of some rows, in the shapes of Spark ML.

    Attributes:
        raw: [rows, classes]; of two classes -x and x, where x is the logit of the second one (under "bce", which has no
            logit, as `probability`).
        probability: [rows, classes].
        prediction: [rows], the class of each row: 0.0, 1.0, ...
    """

    raw: Floats
    probability: Floats
    prediction: Floats


@dataclass(frozen=True)
class ClassRule:
    """How a class is read off what a module returns.

    Attributes:
        loss: that it was trained with, of BINARY or CLASS_INDEX.
        threshold: of two classes, above which probability of the second one a row is of it.
        thresholds: of more than two, what the probability of each is divided by before the largest one is chosen; empty
            where that is 1.
        as_returned: whether two numbers of a module are what they are of three: raw as they are, and of the largest one
            the class. Else they are one logit.
    """

    loss: str
    threshold: float = 0.5
    thresholds: tuple[float, ...] = ()
    as_returned: bool = False

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> ClassRule | None:
        """The rule of a saved model, by what its manifest says under `state`; None where no class can be read off.

        Models that were saved without one have the thresholds that are the default.
        """
        if "classes" in state:
            rule = state["classes"]
            return cls(rule["loss"], rule["threshold"], tuple(rule["thresholds"]), rule.get("as_returned", False))
        result = state.get("result", {})
        loss, outputs = result.get("loss", ""), [tuple(output["shape"]) for output in result.get("outputs", ())]
        return cls(loss) if tells_classes(loss, outputs) else None

    def classes(self, score: Floats) -> Classes:
        """Classes of what the module returned: float64 [rows], or [rows, classes]."""
        loss = self.loss
        if score.ndim == 2 and score.shape[1] == 2 and not self.as_returned:
            # Under a loss of class indices these are one logit.
            with np.errstate(invalid="ignore"):
                loss, score = "bce_with_logits", score[:, 1] - score[:, 0]
        if score.ndim == 1:
            with np.errstate(over="ignore"):
                second = score if loss == "bce" else 1.0 / (1.0 + np.exp(-score))
            both = np.stack([1.0 - second, second], axis=1)
            raw = both if loss == "bce" else np.stack([-score, score], axis=1)
            return Classes(raw, both, (second > self.threshold).astype(np.float64))
        probability = np.exp(score) if loss == "nll" else _softmax(score)
        if not self.thresholds:
            return Classes(score, probability, _largest(score))
        with np.errstate(divide="ignore", invalid="ignore"):
            return Classes(score, probability, _largest(probability / np.array(self.thresholds)))


def _softmax(score: Floats) -> Floats:
    powers = np.exp(score - score.max(axis=1, keepdims=True, initial=-np.inf))
    softmax: Floats = powers / powers.sum(axis=1, keepdims=True)
    return softmax


def _largest(values: Floats) -> Floats:
    """The first class with the largest number; NaN is none."""
    largest: Floats = np.where(np.isnan(values), -np.inf, values).argmax(axis=1).astype(np.float64)
    return largest
