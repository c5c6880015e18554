"""Params of CTRClassifier and CTRClassificationModel."""

from __future__ import annotations

from typing import Any

from pyspark.ml.param import TypeConverters

from hvdspark.embedding.config import AT_LIMIT, DTYPES, OPTIMIZERS
from hvdspark.estimators.class_params import ClassifierParams
from hvdspark.estimators.declare import by_name, distinct_names, in_range, number, one_of, param, worded
from hvdspark.estimators.paced import PacedParams
from hvdspark.models import ARCHITECTURES
from hvdspark.ranges import Range


def _sizes(value: Any) -> list[int]:
    return [in_range("hiddenUnits", TypeConverters.toInt, Range(1))(size) for size in TypeConverters.toList(value)]


_COUNTS = Range(1)


class CTRScoringParams(ClassifierParams):
    """Params of estimator and model."""

    continuousCols = param(
        "continuousCols",
        "columns of numbers, as they are: each enters as itself and as sign(x) log(1 + |x|), both standardised in "
        "float64 over the training rows; where they are not set, there are none",
        distinct_names("continuousCols", may_be_empty=True),
    )
    categoricalCols = param(
        "categoricalCols",
        "columns of categories: strings, integers or booleans of any cardinality, or arrays of them, which are pooled; "
        "where they are not set, there are none",
        distinct_names("categoricalCols", may_be_empty=True),
    )
    handleInvalid = worded(
        ClassifierParams.handleInvalid,
        "null, NaN or infinity (also beyond 3.4e38, the float32 range) in a feature: error, skip (drop the "
        "row) or keep (a continuous column: the mean; a categorical one: null is a category of its own, a null array "
        "an empty one), the same in fit and transform",
    )


class CTRTrainingParams(PacedParams):
    """Params of the estimator only."""

    architecture = param(
        "architecture",
        f"of the network: {', '.join(ARCHITECTURES)}",
        one_of("architecture", *ARCHITECTURES),
    )
    embeddingDim = number(
        "embeddingDim",
        "columns of an embedding ({range})",
        TypeConverters.toInt,
        Range(1),
    )
    hiddenUnits = param("hiddenUnits", "sizes of the hidden layers, each at least 1", _sizes)
    dropout = number(
        "dropout",
        "share of hidden units that are left out of a training step ({range})",
        TypeConverters.toFloat,
        Range(0, 0.9),
    )
    pooling = param(
        "pooling",
        "how the embeddings of an array of categories become one: mean or sum",
        one_of("pooling", "mean", "sum"),
    )
    embeddingOptimizer = param(
        "embeddingOptimizer",
        f"of the embeddings: {', '.join(OPTIMIZERS)}; that of the dense layers is Adam",
        one_of("embeddingOptimizer", *OPTIMIZERS),
    )
    embeddingLearningRate = number(
        "embeddingLearningRate",
        "learning rate of the embeddings; never rescaled by numWorkers ({range}). None: it follows from the optimizer, "
        "the batch and the share of positive training rows, and is higher for first-order weights",
        TypeConverters.toFloat,
        Range(0, open=True),
    )
    embeddingMinCount = number(
        "embeddingMinCount",
        "how often a category must occur in the training rows before it gets an embedding; until then it is the zero "
        "vector ({range})",
        TypeConverters.toInt,
        Range(1),
    )
    embeddingDtype = param(
        "embeddingDtype",
        f"of stored embeddings: {', '.join(DTYPES)}; arithmetic is float32",
        one_of("embeddingDtype", *DTYPES),
    )
    embeddingAtLimit = param(
        "embeddingAtLimit",
        f"what a table does where its rank may take no more memory: {', '.join(AT_LIMIT)}. raise: the fit ends with "
        "MemoryBudgetError; refuse: new categories get no embedding, and are the zero vector; evict: those go that "
        "were not met for the longest time",
        one_of("embeddingAtLimit", *AT_LIMIT),
    )
    sharedTables = param(
        "sharedTables",
        'tables that several of categoricalCols share, by a name of your own: {"place": ["home", "away"]} gives a '
        "category one embedding and one first-order weight in all of them; every other column has a table of its own",
        by_name(distinct_names("sharedTables"), "lists of columns"),
    )
    embeddingDims = param(
        "embeddingDims",
        'columns of an embedding where they are not embeddingDim, by column (or by shared table): {"user": 32}, each '
        "at least 1. Architectures that multiply embeddings (fm, deepfm, dlrm) take one for all, and lr has none",
        by_name(in_range("embeddingDims", TypeConverters.toInt, _COUNTS), "whole numbers"),
    )
    embeddingOptimizers = param(
        "embeddingOptimizers",
        'optimizers where they are not embeddingOptimizer, by column (or by shared table): {"user": "adam"}',
        by_name(one_of("embeddingOptimizers", *OPTIMIZERS), "names"),
    )
    embeddingMinCounts = param(
        "embeddingMinCounts",
        'how often a category must occur where it is not embeddingMinCount, by column (or by shared table): {"user": '
        "5}, each at least 1",
        by_name(in_range("embeddingMinCounts", TypeConverters.toInt, _COUNTS), "whole numbers"),
    )
    embeddingAtLimits = param(
        "embeddingAtLimits",
        "what tables do at the limit of memory where it is not embeddingAtLimit, by column (or by shared table): "
        '{"user": "evict"}',
        by_name(one_of("embeddingAtLimits", *AT_LIMIT), "names"),
    )

    learningRate = worded(
        PacedParams.learningRate,
        "learning rate of Adam, for the dense layers; never rescaled by numWorkers (above 0). Where it is not set, "
        "that of the first-order weights of numbers and of the bias is 10 times as high",
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
            embeddingMinCount=1,
            embeddingDtype="float32",
            sharedTables={},
            embeddingDims={},
            embeddingOptimizers={},
            embeddingMinCounts={},
            embeddingAtLimit="raise",
            embeddingAtLimits={},
            embeddingLearningRate=None,  # follows from the training rows
        )
