"""Params of estimators and models that tell classes apart, with the meaning that Spark ML's classifiers give them."""

from __future__ import annotations

from typing import Any, TypeVar

from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import HasProbabilityCol, HasRawPredictionCol, HasThreshold, HasThresholds

from hvdspark.artifact.classes import ClassRule
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.declare import number, param, worded
from hvdspark.estimators.params import ScoringParams
from hvdspark.ranges import Range

P = TypeVar("P", bound="ClassifierParams")


def _thresholds(value: Any) -> list[float]:
    numbers: list[float] = TypeConverters.toListFloat(value)
    if len(numbers) < 2 or min(numbers) < 0 or numbers.count(0.0) > 1:
        raise ConfigurationError(
            "out of range",
            value=value,
            where="thresholds",
            hint="one number for each class, all above 0, or one of them 0",
        )
    return numbers


class ClassParams(ScoringParams, HasProbabilityCol, HasRawPredictionCol, HasThreshold):
    """Params of scores that may become classes."""

    threshold = number(
        "threshold",
        "rows whose probability of class 1.0 is above are of that class; {range}",
        TypeConverters.toFloat,
        Range(0, 1),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(threshold=0.5)


class ClassifierParams(ClassParams, HasThresholds):
    """Params of scores that are classes. Of `threshold` and `thresholds` the one that is set last holds."""

    predictionCol = worded(
        ClassParams.predictionCol, "class of each row, a double: 0.0, 1.0, ... Empty: no such column"
    )
    probabilityCol = worded(
        ClassParams.probabilityCol, "probability of each class, a vector that adds up to 1. Empty: no such column"
    )
    rawPredictionCol = worded(
        ClassParams.rawPredictionCol,
        "what a BinaryClassificationEvaluator takes, a vector: -x and x of two classes, where x is the logit of the "
        "second one, else a number for each class. Empty: no such column",
    )
    threshold = worded(
        ClassParams.threshold,
        "of two classes: rows whose probability of class 1.0 is above are of that class; at least 0 and at most 1. "
        "Setting it clears thresholds",
    )
    thresholds = param(
        "thresholds",
        "one number for each class, all above 0, or one of them 0: a row is of the class whose probability divided by "
        "its number is largest. Setting them clears threshold; where they are not set, threshold or the most probable "
        "class holds",
        _thresholds,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(probabilityCol="probability", rawPredictionCol="rawPrediction")

    def setThreshold(self: P, value: float) -> P:
        """Set threshold, and clear thresholds; returns this object."""
        self._set(threshold=value)
        self.clear(self.thresholds)
        return self

    def getThreshold(self) -> float:
        """Value of threshold, or what two thresholds come to."""
        if not self.isSet(self.thresholds):
            return float(self.getOrDefault(self.threshold))
        first, second, *others = self.getOrDefault(self.thresholds)
        if others:
            raise ConfigurationError(
                "threshold is for two classes", value=len(others) + 2, where="thresholds", hint="use getThresholds()"
            )
        threshold = 1.0 / (1.0 + first / second) if second else 0.0
        if self.isSet(self.threshold) and abs(self.getOrDefault(self.threshold) - threshold) >= 1e-5:
            raise ConfigurationError(
                "threshold and thresholds contradict each other",
                value=f"{self.getOrDefault(self.threshold)} and {[first, second]}",
                hint="set one of them: setThreshold and setThresholds clear the other",
            )
        return threshold

    def setThresholds(self: P, value: list[float]) -> P:
        """Set thresholds, and clear threshold; returns this object."""
        self._set(thresholds=value)
        self.clear(self.threshold)
        return self

    def getThresholds(self) -> list[float]:
        """Value of thresholds, or those of two classes that threshold comes to, where that is set."""
        if not self.isSet(self.thresholds) and self.isSet(self.threshold):
            threshold = float(self.getOrDefault(self.threshold))
            return [1.0 - threshold, threshold]
        thresholds: list[float] = self.getOrDefault(self.thresholds)
        return thresholds

    def class_rule(self, loss: str, classes: int) -> ClassRule:
        """How classes are read off scores.

        Args:
            loss: its name.
            classes: how many there are.

        Raises:
            ConfigurationError: thresholds of another number of classes, or that contradict the threshold.
        """
        thresholds = self.getOrDefault(self.thresholds) if self.isSet(self.thresholds) else []
        if thresholds and len(thresholds) != classes:
            raise ConfigurationError(
                f"there must be one for each of the {classes} classes", value=thresholds, where="thresholds"
            )
        if classes == 2:
            return ClassRule(loss, self.getThreshold())
        return ClassRule(loss, thresholds=tuple(thresholds))
