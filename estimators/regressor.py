"""`TorchRegressor`: a `torch.nn.Module` that predicts a number, and the model it fits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.types import DoubleType, StructField, StructType
from torch import nn

from hvdspark.artifact.classes import BINARY, CLASS_INDEX
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.columns import check_new_columns, check_one_number
from hvdspark.estimators.declare import accessors, model_accessors
from hvdspark.estimators.fit import WrittenRows
from hvdspark.estimators.heads import check_regression
from hvdspark.estimators.keywords import keyword_only
from hvdspark.estimators.module import ModuleEstimator, ModuleModel
from hvdspark.estimators.paced import PacedParams
from hvdspark.estimators.torch_params import RegressorScoringParams
from hvdspark.events import FitListener
from hvdspark.train.callbacks import Callback
from hvdspark.train.check import loss_names
from hvdspark.train.program import Program
from hvdspark.train.rehearsal import first_outputs

logger = logging.getLogger(__name__)


@accessors
class TorchRegressor(ModuleEstimator["TorchRegressionModel"], RegressorScoringParams, PacedParams):
    """Trains a `torch.nn.Module` to predict a number, on `numWorkers` Spark tasks.

    Takes and gives the columns that regressors of Spark ML do. The module is called as `TorchEstimator` calls it, with
    one tensor for `featuresCol`, or one for each of `featureCols`. It returns one number for each row: [rows] or
    [rows, 1]. The label is any number.

    Args:
        model: the module. Its weights are where training starts; the module itself is not changed.
        loss: None is "mse". Else "l1", "huber", "smooth_l1", a torch loss of one output, or a callable (output, label)
            -> loss of each row or their mean.
        optimizer: a name ("adam", "adamw", "sgd", "adagrad", "rmsprop"), a `torch.optim` class, a `functools.partial`
            of one, a callable taking the parameters, or an optimizer made on `model.parameters()`.
        callbacks: `hvdspark.train.Callback` objects; they run on every rank.
        listeners: `hvdspark.events.FitListener` objects, told on the driver what happens in a fit. They are not saved.

    Everything else is a Param: see `explainParams()`. Batch size, epochs and schedule follow from the number of
    training rows where they are not set.

    Example:
        >>> net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
        >>> model = TorchRegressor(model=net, featuresCol="features", labelCol="price", numWorkers=2).fit(train)
        >>> scored = model.transform(test)  # prediction
    """

    @keyword_only
    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        loss: Any = None,
        optimizer: Any = "adam",
        callbacks: Sequence[Callback] = (),
        listeners: Sequence[FitListener] = (),
        featuresCol: str | None = None,
        featureCols: list[str] | None = None,
        labelCol: str | None = None,
        predictionCol: str | None = None,
        weightCol: str | None = None,
        validationIndicatorCol: str | None = None,
        validationFraction: float | None = None,
        validationGroupCol: str | None = None,
        handleInvalid: str | None = None,
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
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)  # type: ignore[attr-defined]

    def _new_columns(self) -> list[str]:
        return _wanted(self)

    def _columns(self, dataset: DataFrame) -> tuple[list[str], list[str]]:
        label = self.getOrDefault("labelCol")
        check_one_number(dataset.schema, label, "for several labels use TorchEstimator")
        return self.feature_columns(), [label]

    def _loss_before(self) -> Any:
        return "mse" if self.getLoss() is None else self.getLoss()

    def _loss_of(self, dataset: DataFrame, rows: WrittenRows, program: Program) -> Any:
        (name,) = loss_names(program, [self.getOrDefault("labelCol")])
        if name in (*BINARY, *CLASS_INDEX):
            raise ConfigurationError("a loss of classes", value=name, where="loss", hint="use TorchClassifier")
        outputs = first_outputs(rows.store, rows.data, self.feature_columns(), program.module)
        if outputs is not None:
            check_regression(program.module, outputs.tensors)
        return program.loss

    def _new_model(self) -> TorchRegressionModel:
        return TorchRegressionModel()


@model_accessors(RegressorScoringParams)
class TorchRegressionModel(ModuleModel, RegressorScoringParams, PacedParams):
    """A fitted regressor: a URI in the store and a small description. Scores DataFrames in place.

    `transform` starts no job, keeps every input column and adds `prediction`, a double.
    """

    def _with_outputs(self, schema: StructType) -> StructType:
        names = _wanted(self)
        check_new_columns(schema, names)
        return StructType([*schema.fields, *(StructField(name, DoubleType(), True) for name in names)])

    def predict(self, value: Any) -> float:
        """The prediction for one row, on this machine.

        Args:
            value: of the only feature column: a vector, a list of numbers, or a number.
        """
        return float(self._scores_of(value)[0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self.transformSchema(dataset.schema)
        if not _wanted(self):
            logger.warning("predictionCol is empty: transform adds no column")  # as Spark's own models say
            return dataset
        rows, scores = self._scored(dataset)
        return rows.withColumn(self.getOrDefault("predictionCol"), scores)


def _wanted(params: RegressorScoringParams) -> list[str]:
    """The output column; none where its name is empty."""
    name = params.getOrDefault("predictionCol")
    return [name] if name else []
