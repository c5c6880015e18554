"""Params of TorchEstimator and TorchModel."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import HasOutputCols

from hvdspark.estimators.declare import distinct_names, param, worded
from hvdspark.estimators.params import ScoringParams, TrainingParams


class TorchScoringParams(ScoringParams, HasOutputCols):
    """Params of TorchEstimator and TorchModel."""

    predictionCol = worded(
        ScoringParams.predictionCol,
        "what the module returns, as it is: under bce_with_logits and cross_entropy that is logits, no probability and "
        "no class. With probabilityCol or rawPredictionCol set, the class: 0.0, 1.0, ...",
    )
    probabilityCol = worded(
        ScoringParams.probabilityCol,
        "probability of each class, a vector; for one label and the losses bce_with_logits, bce, cross_entropy, nll. "
        "Empty: no such column",
    )
    rawPredictionCol = worded(
        ScoringParams.rawPredictionCol,
        "what a BinaryClassificationEvaluator takes, a vector: -x and x of a logit x, else a number for each class. "
        "Empty: no such column",
    )
    threshold = worded(
        ScoringParams.threshold,
        "with probabilityCol or rawPredictionCol set and one output: rows whose probability is above are of class 1.0; "
        "between 0 and 1",
    )

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
