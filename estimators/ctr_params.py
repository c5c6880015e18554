"""Params of CTRClassifier and CTRClassificationModel."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import (
    HasHandleInvalid,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasThreshold,
)

from hvdspark.embedding.config import DTYPES, OPTIMIZERS
from hvdspark.estimators.params import _TrainingParams, distinct_names, in_range, one_of, param
from hvdspark.models import ARCHITECTURES


def _sizes(value: Any) -> list[int]:
    return [in_range("hiddenUnits", TypeConverters.toInt, 1)(size) for size in TypeConverters.toList(value)]


class _CTRScoringParams(HasPredictionCol, HasProbabilityCol, HasRawPredictionCol, HasThreshold, HasHandleInvalid):
    """Params of estimator and model."""

    continuousCols = param(
        "continuousCols",
        "columns of numbers, as they are: they enter as sign(x) log(1 + |x|), standardised over the training rows",
        distinct_names("continuousCols", may_be_empty=True),
    )
    categoricalCols = param(
        "categoricalCols",
        "columns of categories: strings, integers or booleans of any cardinality, or arrays of them, which are pooled",
        distinct_names("categoricalCols", may_be_empty=True),
    )
    handleInvalid = param(
        "handleInvalid",
        "null, NaN or infinity (also beyond 3.4e38, the float32 range) in a feature: error (default), skip (drop the "
        "row) or keep (a continuous column: the mean; a categorical one: null is a category of its own, a null array "
        "an empty one), the same in fit and transform",
        one_of("handleInvalid", "error", "skip", "keep"),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            predictionCol="prediction",
            probabilityCol="probability",
            rawPredictionCol="rawPrediction",
            threshold=0.5,
            handleInvalid="error",
        )


class _CTRTrainingParams(_TrainingParams):
    """Params of the estimator only."""

    architecture = param(
        "architecture",
        f"of the network: {', '.join(ARCHITECTURES)} (default dlrm)",
        one_of("architecture", *ARCHITECTURES),
    )
    embeddingDim = param(
        "embeddingDim",
        "columns of an embedding (default 16, at least 1)",
        in_range("embeddingDim", TypeConverters.toInt, 1),
    )
    hiddenUnits = param("hiddenUnits", "sizes of the hidden layers, each at least 1 (default [256, 128])", _sizes)
    dropout = param(
        "dropout",
        "share of hidden units that are left out of a training step (default 0, at most 0.9)",
        in_range("dropout", TypeConverters.toFloat, 0, 0.9),
    )
    pooling = param(
        "pooling",
        "how the embeddings of an array of categories become one: mean (default) or sum",
        one_of("pooling", "mean", "sum"),
    )
    embeddingOptimizer = param(
        "embeddingOptimizer",
        f"of the embeddings: {', '.join(OPTIMIZERS)} (default rowwise_adagrad); that of the dense layers is Adam",
        one_of("embeddingOptimizer", *OPTIMIZERS),
    )
    embeddingLearningRate = param(
        "embeddingLearningRate",
        "learning rate of the embeddings; never rescaled by numWorkers (default 0.02, above 0)",
        in_range("embeddingLearningRate", TypeConverters.toFloat, 0, open_low=True),
    )
    embeddingMinCount = param(
        "embeddingMinCount",
        "global batches that must meet a category before it gets an embedding; until then it is the zero vector "
        "(default 1, at least 1)",
        in_range("embeddingMinCount", TypeConverters.toInt, 1),
    )
    embeddingDtype = param(
        "embeddingDtype",
        f"of stored embeddings: {', '.join(DTYPES)} (default float32); arithmetic is float32",
        one_of("embeddingDtype", *DTYPES),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            architecture="dlrm",
            embeddingDim=16,
            hiddenUnits=[256, 128],
            dropout=0.0,
            pooling="mean",
            embeddingOptimizer="rowwise_adagrad",
            embeddingLearningRate=0.02,
            embeddingMinCount=1,
            embeddingDtype="float32",
            batchSize=8192,
        )
