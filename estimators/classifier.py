"""`TorchClassifier`: a `torch.nn.Module` that tells classes apart, in the shapes of Spark ML, and the model it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from torch import nn

from hvdspark.estimators.classes import new_columns
from hvdspark.estimators.classification import ClassificationModel
from hvdspark.estimators.columns import check_one_number
from hvdspark.estimators.declare import accessors, model_accessors
from hvdspark.estimators.defaults import set_value
from hvdspark.estimators.fit import WrittenRows
from hvdspark.estimators.heads import check_classes, check_loss_of_width, class_loss, count_classes
from hvdspark.estimators.keywords import keyword_only
from hvdspark.estimators.module import ModuleEstimator, ModuleModel
from hvdspark.estimators.paced import PacedParams
from hvdspark.estimators.scorer import SCORES
from hvdspark.estimators.torch_params import ClassifierScoringParams, ClassifierTrainingParams
from hvdspark.events import FitListener
from hvdspark.train.callbacks import Callback
from hvdspark.train.check import loss_names
from hvdspark.train.program import Program
from hvdspark.train.rehearsal import first_outputs


@accessors
class TorchClassifier(ModuleEstimator["TorchClassificationModel"], ClassifierScoringParams, ClassifierTrainingParams):
    """Trains a `torch.nn.Module` to tell two or more classes apart, on `numWorkers` Spark tasks.

    Takes and gives the columns that classifiers of Spark ML do. The module is called as `TorchEstimator` calls it, with
    one tensor for `featuresCol`, or one for each of `featureCols`. It returns one number for each class, [rows,
    classes], or of two classes also one number alone, [rows] or [rows, 1]: numbers of any size, not probabilities.
    Labels are 0, 1, ..., as doubles or integers.

    Args:
        model: the module. Its weights are where training starts; the module itself is not changed.
        loss: None chooses what suits the module: "cross_entropy" for a number for each class, "bce_with_logits" for one
            number, "bce" where that comes from a Sigmoid. Else one of these or "nll", or a torch loss of that kind,
            such as `nn.CrossEntropyLoss(weight=...)`.
        optimizer: a name ("adam", "adamw", "sgd", "adagrad", "rmsprop"), a `torch.optim` class, a `functools.partial`
            of one, a callable taking the parameters, or an optimizer made on `model.parameters()`.
        callbacks: `hvdspark.train.Callback` objects; they run on every rank.
        listeners: `hvdspark.events.FitListener` objects, told on the driver what happens in a fit. They are not saved.

    Everything else is a Param: see `explainParams()`. Batch size, epochs and schedule follow from the number of
    training rows where they are not set.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> model = TorchClassifier(model=net, featuresCol="features", labelCol="label", numWorkers=2).fit(train)
        >>> scored = model.transform(test)  # rawPrediction, probability, prediction
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
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        numClasses: int | None = None,
        threshold: float | None = None,
        thresholds: list[float] | None = None,
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
        return new_columns(self)

    def _columns(self, dataset: DataFrame) -> tuple[list[str], list[str]]:
        label = self.getOrDefault("labelCol")
        check_one_number(dataset.schema, label, "the number of a class: 0, 1, ...")
        return self.feature_columns(), [label]

    def _loss_before(self) -> Any:
        # Of those that may be chosen the one that all metrics suit.
        return "bce_with_logits" if self.getLoss() is None else self.getLoss()

    def _loss_of(self, dataset: DataFrame, rows: WrittenRows, program: Program) -> Any:
        (label,) = self._columns(dataset)[1]
        given, own = set_value(self, "numClasses"), self.getLoss()
        classes = count_classes(rows.data.column(label), dataset.schema[label].metadata, given)
        outputs = first_outputs(rows.store, rows.data, self.feature_columns(), program.module)
        if outputs is None:  # it needs what only ranks have
            guess = "bce_with_logits" if classes.count == 2 else "cross_entropy"
            return guess if own is None else own
        width = check_classes(program.module, outputs.tensors, classes)
        self.class_rule("", max(width, 2))
        if own is None:
            return class_loss(outputs.tensors[0], width)
        check_loss_of_width(program.module, loss_names(program, [label])[0], width)
        return own

    def _new_model(self) -> TorchClassificationModel:
        return TorchClassificationModel()


@model_accessors(ClassifierScoringParams)
class TorchClassificationModel(ClassificationModel, ModuleModel, ClassifierScoringParams, PacedParams):
    """A fitted classifier: a URI in the store and a small description. Scores DataFrames in place.

    `transform` starts no job, keeps every input column and adds `rawPrediction` (vector: a number for each class; of
    two classes -x and x, x the logit of the second one), `probability` (vector) and `prediction` (double: the most
    probable class, by `threshold` or `thresholds`). A column whose Param is "" is left out.
    """

    def predict(self, value: Any) -> float:
        """The class of one row, on this machine.

        Args:
            value: of the only feature column: a vector, a list of numbers, or a number.
        """
        return float(self._rule().classes(self._scores_of(value)).prediction[0])

    def predictProbability(self, value: Any) -> DenseVector:
        """The probability of each class for one row; `value` as of `predict`."""
        return Vectors.dense(self._rule().classes(self._scores_of(value)).probability[0])

    def predictRaw(self, value: Any) -> DenseVector:
        """The raw prediction for one row; `value` as of `predict`."""
        return Vectors.dense(self._rule().classes(self._scores_of(value)).raw[0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self.transformSchema(dataset.schema)
        rows, scores = self._scored(dataset)
        is_vector = self._state.outputs[0].is_vector
        return self._with_classes(rows, scores, self._filled(F.col(SCORES)) if is_vector else None)
