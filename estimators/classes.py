"""A classifier's scores as raw prediction, probability and class: expressions of the Spark plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pyspark.ml.param import Params
from pyspark.sql import Column
from pyspark.sql import functions as F

from hvdspark.artifact.forward import OutputSpec
from hvdspark.errors import ConfigurationError
from hvdspark.train.torch_loss import BINARY, CLASS_INDEX

logger = logging.getLogger(__name__)

LOGITS = ("bce_with_logits", "cross_entropy")


def check_classifies(loss: str, outputs: Sequence[OutputSpec]) -> None:
    """Raise ConfigurationError where no class can be read off what the module returns.

    Args:
        loss: its name, "" where it has none of those known.
    """
    where = "probabilityCol and rawPredictionCol"
    if loss not in (*BINARY, *CLASS_INDEX):
        raise ConfigurationError(
            "the loss does not say what is a probability",
            where=where,
            hint=f"they are for one label and the losses {', '.join((*BINARY, *CLASS_INDEX))}; leave them unset, "
            "and predictionCol is what the module returns",
        )
    shapes = [output.shape for output in outputs]
    fits = len(shapes) == 1 and ((shapes[0] in ((), (1,))) if loss in BINARY else len(shapes[0]) == 1)
    if not fits:
        raise ConfigurationError(
            "the module must return " + ("one number" if loss in BINARY else "one number for each class"),
            value=f"after the rows: {', '.join(map(str, shapes))}",
            where=where,
            hint="leave them unset, and the output columns are what the module returns",
        )


def wants_classes(params: Params) -> bool:
    """Whether the columns of a classifier are wanted, and not what the module returns."""
    return bool(params.getOrDefault("probabilityCol") or params.getOrDefault("rawPredictionCol"))


def check_losses(params: Params, losses: Sequence[str]) -> None:
    """What the losses say of the columns that will be added.

    Args:
        losses: name of each label's loss, "" where it has none of those known.

    Raises:
        ConfigurationError: the columns of a classifier are wanted, and the loss is none of one.
    """
    if wants_classes(params):
        if len(losses) > 1 or not losses[0]:
            check_classifies("", ())
    elif logits := sorted({*losses} & {*LOGITS}):
        logger.warning(
            "%s takes logits: predictionCol will be a logit, no probability and no class. "
            "probabilityCol='probability' adds probabilities, and makes predictionCol the class",
            ", ".join(logits),
        )


def check_outputs(params: Params, losses: Sequence[str], outputs: Sequence[OutputSpec]) -> None:
    """ConfigurationError where the columns of a classifier are wanted, and what the module returns is no class.

    Args:
        outputs: none where the module could not be called yet.
    """
    if wants_classes(params) and outputs:
        check_classifies(losses[0], outputs)


def as_classes(loss: str, score: Column, threshold: float) -> tuple[Column, Column, Column]:
    """(raw prediction, probability, class) of a score: array<double>, array<double>, double.

    Args:
        score: double for losses of two classes, else array<double>.
        threshold: above which probability of the second of two classes a row is of that class.
    """
    if loss in BINARY:
        probability = score if loss == "bce" else 1.0 / (1.0 + F.exp(-score))
        both = F.array(1.0 - probability, probability)
        raw = both if loss == "bce" else F.array(-score, score)
        return raw, both, second_class(probability, threshold)
    largest = F.array_max(score)
    if loss == "nll":
        probabilities = F.transform(score, F.exp)
    else:
        powers = F.transform(score, lambda value: F.exp(value - largest))
        total = F.aggregate(powers, F.lit(0.0), lambda so_far, power: so_far + power)
        probabilities = F.transform(powers, lambda power: power / total)
    return score, probabilities, (F.array_position(score, largest) - 1).cast("double")


def second_class(probability: Column, threshold: float) -> Column:
    """1.0 where the probability of the second of two classes is above the threshold, else 0.0, also for NaN."""
    return ((probability > threshold) & ~F.isnan(probability)).cast("double")  # to Spark, NaN is above every number
