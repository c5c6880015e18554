"""A classifier's scores as raw prediction, probability and class: expressions of the Spark plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Params
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from hvdspark.artifact.classes import BINARY, CLASS_INDEX, ClassRule, tells_classes
from hvdspark.artifact.forward import OutputSpec
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.class_params import ClassifierParams
from hvdspark.estimators.columns import check_names
from hvdspark.estimators.scorer import SCORES

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
    if not tells_classes(loss, shapes):
        raise ConfigurationError(
            "the module must return " + ("one number" if loss in BINARY else "one number for each class"),
            value=f"after the rows: {', '.join(map(str, shapes))}",
            where=where,
            hint="leave them unset, and the output columns are what the module returns",
        )


def wants_classes(params: Params) -> bool:
    """Whether the columns of a classifier are wanted, and not what the module returns."""
    if isinstance(params, ClassifierParams):
        return True
    names = ("probabilityCol", "rawPredictionCol")
    return any(params.hasParam(name) and bool(params.getOrDefault(name)) for name in names)


def check_losses(params: Params, losses: Sequence[str]) -> None:
    """What the losses say of the columns that will be added.

    Args:
        losses: name of each label's loss, "" where it has none of those known.

    Raises:
        ConfigurationError: the columns of a classifier are wanted, and the loss is none of one.
    """
    if isinstance(params, ClassifierParams):
        if losses[0] not in (*BINARY, *CLASS_INDEX):
            raise ConfigurationError(
                "a classifier cannot tell from this loss what is a probability",
                value=losses[0] or None,
                where="loss",
                hint=f"leave it unset, or use one of {', '.join((*BINARY, *CLASS_INDEX))}, also as a torch loss such "
                "as nn.CrossEntropyLoss(weight=...); TorchEstimator trains with any other",
            )
    elif wants_classes(params):
        if len(losses) > 1 or not losses[0]:
            check_classifies("", ())
    elif logits := sorted({*losses} & {*LOGITS}):
        logger.warning(
            "%s takes logits: predictionCol will be a logit, no probability and no class. "
            "probabilityCol='probability' adds probabilities, and makes predictionCol the class",
            ", ".join(logits),
        )


def check_outputs(params: Params, losses: Sequence[str], outputs: Sequence[OutputSpec]) -> None:
    """ConfigurationError where what the module returns does not fill the columns that are wanted.

    Args:
        outputs: none where the module could not be called yet.
    """
    if not outputs:
        return
    if wants_classes(params):
        check_classifies(losses[0], outputs)
    elif params.hasParam("outputCols") and params.isDefined("outputCols"):
        check_names(params.getOrDefault("outputCols"), len(outputs))


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
    return score, probabilities, _largest(score)


def by_rule(rule: ClassRule, score: Column, classes: int) -> tuple[Column, Column, Column]:
    """What `ClassRule.classes` says, as expressions: array<double>, array<double>, double.

    Args:
        score: double, or array<double> of a module that returns a number for each class.
        classes: the length of that array; 1 of a double.
    """
    if classes == 2 and not rule.as_returned:
        return as_classes("bce_with_logits", score[1] - score[0], rule.threshold)
    raw, probability, prediction = as_classes(rule.loss, score, rule.threshold)
    if rule.thresholds:
        # A threshold of 0 makes any probability above 0 infinite, and a probability of 0 NaN.
        divisors = F.array(*(F.lit(threshold or 1.0) for threshold in rule.thresholds))
        factors = F.array(*(F.lit(1.0 if threshold else float("inf")) for threshold in rule.thresholds))
        prediction = _largest(F.transform(probability, lambda one, number: one / divisors[number] * factors[number]))
    return raw, probability, prediction


def with_classes(
    params: Params,
    rows: DataFrame,
    scores: Column,
    classes: tuple[Column, Column, Column],
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
) -> DataFrame:
    """The rows with those columns of a classifier that have a name.

    Args:
        scores: what is computed once for each row, and what `classes` are made of as column SCORES.
        classes: raw prediction, probability, class.
        metadata: of the columns, by name.
    """
    raw, probability, prediction = classes
    made = (array_to_vector(raw), array_to_vector(probability), prediction)
    wanted = {name: column for name, column in zip(class_columns(params), made, strict=True) if name}
    wanted |= {name: wanted[name].alias(name, metadata=dict(said)) for name, said in (metadata or {}).items()}
    return rows.withColumn(SCORES, scores).withColumns(wanted).drop(SCORES) if wanted else rows


def class_columns(params: Params) -> list[str]:
    """Names of raw prediction, probability and class; "" of one that is not wanted."""
    return [str(params.getOrDefault(name)) for name in ("rawPredictionCol", "probabilityCol", "predictionCol")]


def new_columns(params: Params) -> list[str]:
    """Those of them that are wanted."""
    return [name for name in class_columns(params) if name]


def _largest(values: Column) -> Column:
    """The first class with the largest number, as double; NaN is none."""
    known = F.transform(values, lambda value: F.when(F.isnan(value), float("-inf")).otherwise(value))
    return (F.array_position(known, F.array_max(known)) - 1).cast("double")


def second_class(probability: Column, threshold: float) -> Column:
    """1.0 where the probability of the second of two classes is above the threshold, else 0.0, also for NaN."""
    return ((probability > threshold) & ~F.isnan(probability)).cast("double")  # to Spark, NaN is above every number
