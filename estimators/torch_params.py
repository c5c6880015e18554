"""Params of the estimators that train a user's module, and of their models."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import HasFeaturesCol, HasOutputCols

from hvdspark.estimators.class_params import ClassifierParams, ClassParams
from hvdspark.estimators.declare import distinct_names, number, param, worded
from hvdspark.estimators.paced import PacedParams
from hvdspark.estimators.params import ScoringParams, TrainingParams
from hvdspark.ranges import Range


class ModuleScoringParams(ScoringParams):
    """Params of all of them and their models."""

    featureCols = param(
        "featureCols",
        "input columns, in the order of the module's arguments: numbers, arrays of numbers or ML vectors",
        distinct_names("featureCols"),
    )
    handleInvalid = worded(
        ScoringParams.handleInvalid,
        "null or NaN in a feature, or inside its arrays: error, skip (drop the row) or keep (the module gets "
        "NaN; a null integer or a null array or vector is still an error), the same in fit and transform",
    )


class TorchScoringParams(ModuleScoringParams, ClassParams, HasOutputCols):
    """Params of TorchEstimator and TorchModel."""

    outputCols = worded(
        HasOutputCols.outputCols,
        "columns for what the module returns, one for each of its outputs, in place of predictionCol; where they are "
        "not set, predictionCol, and for further outputs predictionCol with _1, _2, ... or with _ and their keys. "
        "Without effect where probabilityCol or rawPredictionCol is set",
    )

    predictionCol = worded(
        ClassParams.predictionCol,
        "what the module returns, as it is: under bce_with_logits and cross_entropy that is logits, no probability and "
        "no class. With probabilityCol or rawPredictionCol set, the class: 0.0, 1.0, ...",
    )
    probabilityCol = worded(
        ClassParams.probabilityCol,
        "probability of each class, a vector; for one label and the losses bce_with_logits, bce, cross_entropy, nll. "
        "Empty: no such column",
    )
    rawPredictionCol = worded(
        ClassParams.rawPredictionCol,
        "what a BinaryClassificationEvaluator takes, a vector: -x and x of a logit x, else a number for each class. "
        "Empty: no such column",
    )
    threshold = worded(
        ClassParams.threshold,
        "with probabilityCol or rawPredictionCol set and one output: rows whose probability is above are of class 1.0; "
        "between 0 and 1",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(probabilityCol="", rawPredictionCol="")


class TorchTrainingParams(TrainingParams):
    """Params of TorchEstimator only."""

    labelCols = param(
        "labelCols",
        "label columns, one for each output of the module, in that order; replaces labelCol",
        distinct_names("labelCols"),
    )
    lossWeights = param(
        "lossWeights",
        "factor of each label's loss in the sum; where there are none, all are 1",
        TypeConverters.toListFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(learningRateSchedule="constant", lossWeights=[])


class PredictorParams(ModuleScoringParams, HasFeaturesCol):
    """Params of classifier, regressor and their models: one column of features, where there are not several."""

    featuresCol = worded(
        HasFeaturesCol.featuresCol,
        "input column of a module with one argument: an ML vector, an array of numbers or a number",
    )
    featureCols = worded(
        ModuleScoringParams.featureCols,
        "input columns of a module with several arguments, in their order: numbers, arrays of numbers or ML vectors; "
        "replaces featuresCol",
    )

    def feature_columns(self) -> list[str]:
        """The input columns, in the order of the module's arguments."""
        several = self.isDefined("featureCols")
        names: list[str] = self.getOrDefault("featureCols") if several else [self.getOrDefault("featuresCol")]
        return names


class ClassifierScoringParams(PredictorParams, ClassifierParams):
    """Params of TorchClassifier and TorchClassificationModel."""


class ClassifierTrainingParams(PacedParams):
    """Params of TorchClassifier only."""

    numClasses = number(
        "numClasses",
        "how many classes there are, a number of labels 0, 1, ... ({range}); where it is not set, what the label's "
        "metadata says (those of StringIndexer), else one more than the largest label",
        TypeConverters.toInt,
        Range(2),
    )


class RegressorScoringParams(PredictorParams):
    """Params of TorchRegressor and TorchRegressionModel."""

    predictionCol = worded(
        PredictorParams.predictionCol, "the number that is predicted for each row, a double; empty: no such column"
    )
