"""`CTRClassifier`: recommendation models on raw columns, as a stage of a Spark ML Pipeline, and the model it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql.types import DoubleType

from hvdspark.artifact.trust import Trust
from hvdspark.embedding.ids.categories import Values
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.asked import columns_of
from hvdspark.estimators.base import TrainingEstimator
from hvdspark.estimators.categories import category_key, check_categories, is_array
from hvdspark.estimators.classes import new_columns
from hvdspark.estimators.classification import ClassificationModel
from hvdspark.estimators.columns import check_one_number, scoring_input
from hvdspark.estimators.continuous import check_numbers, number
from hvdspark.estimators.ctr_params import CTRScoringParams, CTRTrainingParams
from hvdspark.estimators.ctr_program import click_program
from hvdspark.estimators.declare import accessors, model_accessors
from hvdspark.estimators.embeddings import embeddings, vectors
from hvdspark.estimators.fit import fit
from hvdspark.estimators.keywords import keyword_only
from hvdspark.estimators.persistence import Saved
from hvdspark.estimators.scorer import scorer
from hvdspark.events import FitListener
from hvdspark.models.click import ID_BITS
from hvdspark.store import Store


@accessors
class CTRClassifier(TrainingEstimator["CTRClassificationModel"], CTRScoringParams, CTRTrainingParams):
    """Trains a click-through-rate model on raw columns, its embedding tables sharded over `numWorkers` Spark tasks.

    Categories need no StringIndexer and no vocabulary: they are hashed to 64-bit keys in the Spark plan, and a table
    grows with the categories seen in training. Numbers need no scaling. The label is 0 or 1 (or a probability).

    Args:
        listeners: `hvdspark.events.FitListener` objects, told on the driver what happens in a fit. They are not saved.

    Everything else is a Param: see `explainParams()`. Gradients are means over the rows (or weights) of the global
    batch, so `batchSize` and the learning rates mean the same for any number of workers.

    Example:
        >>> classifier = CTRClassifier(architecture="dlrm", continuousCols=["age"], categoricalCols=["user", "page"],
        ...                            labelCol="clicked", numWorkers=2)
        >>> model = classifier.fit(train)
        >>> scored = model.transform(test)  # prediction, probability, rawPrediction
    """

    @keyword_only
    def __init__(
        self,
        *,
        architecture: str | None = None,
        continuousCols: list[str] | None = None,
        categoricalCols: list[str] | None = None,
        labelCol: str | None = None,
        predictionCol: str | None = None,
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        threshold: float | None = None,
        thresholds: list[float] | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        validationFraction: float | None = None,
        validationGroupCol: str | None = None,
        handleInvalid: str | None = None,
        embeddingDim: int | None = None,
        hiddenUnits: list[int] | None = None,
        dropout: float | None = None,
        pooling: str | None = None,
        embeddingOptimizer: str | None = None,
        embeddingLearningRate: float | None = None,
        embeddingMinCount: int | None = None,
        embeddingDtype: str | None = None,
        sharedTables: dict[str, list[str]] | None = None,
        embeddingDims: dict[str, int] | None = None,
        embeddingOptimizers: dict[str, str] | None = None,
        embeddingMinCounts: dict[str, int] | None = None,
        embeddingAtLimit: str | None = None,
        embeddingAtLimits: dict[str, str] | None = None,
        numWorkers: int | None = None,
        batchSize: int | None = None,
        epochs: int | None = None,
        learningRate: float | None = None,
        learningRateSchedule: str | None = None,
        learningRateScheduleArgs: dict[str, float] | None = None,
        storeUri: str | None = None,
        trackingUri: str | None = None,
        warmStartFrom: Any = None,
        seed: int | None = None,
        shuffle: bool | None = None,
        shuffleRows: int | None = None,
        precision: str | None = None,
        device: str | None = None,
        gradientAccumulationSteps: int | None = None,
        gradientClipNorm: float | None = None,
        gradientCompression: str | None = None,
        metrics: list[str] | None = None,
        monitor: str | None = None,
        earlyStoppingPatience: int | None = None,
        minWorkers: int | None = None,
        maxWorkers: int | None = None,
        maxRestarts: int | None = None,
        checkpointIntervalSteps: int | None = None,
        checkpointIntervalSeconds: float | None = None,
        stallTimeout: float | None = None,
        runId: str | None = None,
        env: dict[str, str] | None = None,
        startTimeout: float | None = None,
        allowPickle: bool | None = None,
        listeners: Sequence[FitListener] = (),
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)  # type: ignore[attr-defined]

    def _new_columns(self) -> list[str]:
        return new_columns(self)

    def _train(self, dataset: DataFrame) -> CTRClassificationModel:
        value = self.getOrDefault
        numbers, categories = _columns(self)
        check_numbers(dataset.schema, numbers)
        check_categories(dataset.schema, categories)
        _check_roles(self, [*numbers, *categories])
        check_one_number(dataset.schema, value("labelCol"), "0, 1, or a share between them")
        self.class_rule("bce_with_logits", 2)
        # Integers among the numbers become doubles here, where null can be kept as NaN.
        derived = {name: number(name) for name in numbers}
        derived |= {name: category_key(dataset, name, ID_BITS, value("handleInvalid")) for name in categories}
        pooled = [name for name in categories if is_array(dataset.schema, name)]
        features, labels = [*numbers, *categories], [value("labelCol")]
        columns = columns_of(self, dataset, features, labels, derived=derived, numbers=numbers)
        make = partial(click_program, self, numbers, categories, pooled)
        fitted = fit(self, columns, lambda pace, rows: make(pace, None if rows is None else rows.moments))
        # Arrays that all had one length while training may have another one later: pooling takes any.
        specs = tuple(
            replace(spec, layout="ragged", width=None) if spec.name in pooled else spec for spec in fitted.features
        )
        model = CTRClassificationModel()
        model._fitted = replace(
            fitted, features=specs, numbers=tuple(numbers), categories=tuple(categories), id_bits=ID_BITS
        )
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _to_saved(self) -> Saved:
        return Saved({}, {}, {})

    def _restore(self, saved: Saved, store: Store, trust: Trust) -> None:
        """There is nothing but Params."""


@model_accessors(CTRScoringParams)
class CTRClassificationModel(ClassificationModel, CTRScoringParams, CTRTrainingParams):
    """A fitted click-through-rate model: a URI in the store and a small description. Scores DataFrames in place.

    `transform` starts no job, keeps every input column and adds `rawPrediction` (vector of -x and x, x the logit),
    `probability` (vector of 1 - p and p) and `prediction` (1.0 where p is above `threshold`, else 0.0). The embedding
    tables stay in the store: executors map what the rows ask for. A category never seen in training is the zero
    vector.
    """

    def embeddings(self, column: str, categories: DataFrame | None = None) -> DataFrame:
        """All trained embeddings of a column, one row for each category that training has met. Starts no job.

        Columns: `category` (null where `categories` does not have it), `key` (bigint, what the category is hashed to),
        `vector` (array<float>), `weight` (float, its first-order weight; null in models of two tables, which early
        versions saved) and `count` (int, batches of training that met it; null in models saved without). Spark's tasks
        read them from the files of the model. Columns that share a table have the same embeddings.

        Args:
            column: one of categoricalCols.
            categories: a DataFrame with a column of that name, whose values are the categories to be named; also
                arrays of them. A key cannot be turned back into its category. Null is named by nobody.

        Raises:
            ConfigurationError: not a column of categories, or no DataFrame of them.
            SchemaError: `categories` has no such column, or it is not of the type of training.
            CheckpointError: the model is no longer in the store.
            ClusterError: there is no session.
        """
        return embeddings(self._state, column, categories)

    def vectors(self, column: str, values: Values) -> NDArray[np.float32]:
        """The embeddings of some categories, without Spark: float32 [n, embeddingDim]. Reads nothing else.

        Args:
            column: one of categoricalCols.
            values: categories as the user has them: strings, integers or booleans. One never met is zeros.

        Raises:
            ConfigurationError: not a column of categories.
            DataError: a value that can be no category of this column.
        """
        return vectors(self._state, column, values)

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self.transformSchema(dataset.schema)
        handle_invalid = self.getOrDefault("handleInvalid")
        fitted, (numbers, categories) = self._renamed, _columns(self)
        trained = fitted.types
        check_numbers(dataset.schema, numbers, trained)
        check_categories(dataset.schema, categories, trained)
        derived = {name: number(name) for name in numbers}
        derived |= {
            name: category_key(dataset, name, ID_BITS, handle_invalid, trained.get(name, "")) for name in categories
        }
        rows, inputs = scoring_input(dataset, fitted.features, handle_invalid, derived)
        return self._with_classes(rows, scorer(fitted.scoring_spec(handle_invalid), [DoubleType()])(*inputs))

    def _names_now(self) -> list[str] | None:
        if not any(self.isSet(name) for name in ("continuousCols", "categoricalCols")):
            return None
        numbers, categories = _columns(self)
        if (found := len(categories)) != (trained := len(self._state.categories)):
            raise ConfigurationError(
                f"the model was trained on {trained} columns of categories",
                value=categories,
                where="categoricalCols",
                hint=f"{found} are named; name as many as in training, in that order: {[*self._state.categories]}",
            )
        return [*numbers, *categories]


def _columns(params: CTRScoringParams) -> tuple[list[str], list[str]]:
    """(continuous, categorical) columns. ConfigurationError where there are none, or one is both."""
    numbers, categories = (
        list(params.getOrDefault(name)) if params.isDefined(name) else []
        for name in ("continuousCols", "categoricalCols")
    )
    if not numbers and not categories:
        raise ConfigurationError("not set", where="continuousCols and categoricalCols", hint="name some columns")
    if both := sorted(set(numbers) & set(categories)):
        raise ConfigurationError(
            "a column is both continuous and categorical",
            value=both,
            where="continuousCols and categoricalCols",
            hint="amounts belong into continuousCols, ids and codes into categoricalCols; for both, add a copy of it",
        )
    return numbers, categories


def _check_roles(params: CTRClassifier, features: list[str]) -> None:
    """ConfigurationError where the label or the weight is also a feature: it would tell what is to be learned."""
    for param in ("labelCol", "weightCol"):
        if params.isDefined(param) and params.getOrDefault(param) in features:
            raise ConfigurationError(
                "a column has more than one role",
                value=params.getOrDefault(param),
                where=f"{param} and the feature columns",
                hint="leave it out of continuousCols and categoricalCols",
            )
