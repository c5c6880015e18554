"""A classifier's scores as raw prediction, probability and class: expressions of the Spark plan."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F

from hvdspark.errors import ConfigurationError
from hvdspark.train.program import OutputSpec

# Of losses whose output is one number for the second of two classes, or one number for each class.
_TWO_CLASSES = ("bce_with_logits", "bce")
_EACH_CLASS = ("cross_entropy", "nll")
LOGITS = ("bce_with_logits", "cross_entropy")


def check_classifies(loss: str, outputs: Sequence[OutputSpec]) -> None:
    """Raise ConfigurationError where no class can be read off what the module returns.

    Args:
        loss: its name, "" where it has none of those known.
    """
    where = "probabilityCol and rawPredictionCol"
    if loss not in (*_TWO_CLASSES, *_EACH_CLASS):
        raise ConfigurationError(
            "the loss does not say what is a probability",
            where=where,
            hint=f"they are for one label and the losses {', '.join((*_TWO_CLASSES, *_EACH_CLASS))}; leave them unset, "
            "and predictionCol is what the module returns",
        )
    shapes = [output.shape for output in outputs]
    fits = len(shapes) == 1 and ((shapes[0] in ((), (1,))) if loss in _TWO_CLASSES else len(shapes[0]) == 1)
    if not fits:
        raise ConfigurationError(
            "the module must return " + ("one number" if loss in _TWO_CLASSES else "one number for each class"),
            value=f"after the rows: {', '.join(map(str, shapes))}",
            where=where,
            hint="leave them unset, and the output columns are what the module returns",
        )


def as_classes(loss: str, score: Column, threshold: float) -> tuple[Column, Column, Column]:
    """(raw prediction, probability, class) of a score: array<double>, array<double>, double.

    Args:
        score: double for losses of two classes, else array<double>.
        threshold: above which probability of the second of two classes a row is of that class.
    """
    if loss in _TWO_CLASSES:
        probability = score if loss == "bce" else 1.0 / (1.0 + F.exp(-score))
        both = F.array(1.0 - probability, probability)
        raw = both if loss == "bce" else F.array(-score, score)
        # To Spark, NaN is above every number.
        return raw, both, ((probability > threshold) & ~F.isnan(probability)).cast("double")
    largest = F.array_max(score)
    if loss == "nll":
        probabilities = F.transform(score, F.exp)
    else:
        powers = F.transform(score, lambda value: F.exp(value - largest))
        total = F.aggregate(powers, F.lit(0.0), lambda so_far, power: so_far + power)
        probabilities = F.transform(powers, lambda power: power / total)
    return score, probabilities, (F.array_position(score, largest) - 1).cast("double")
