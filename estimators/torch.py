"""`TorchEstimator`: any `torch.nn.Module` as a stage of a Spark ML Pipeline, and the model it fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType
from torch import nn

from hvdspark.artifact.classes import ClassRule
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.classes import as_classes, check_classifies, wants_classes, with_classes
from hvdspark.estimators.columns import check_names, check_new_columns
from hvdspark.estimators.declare import accessors, model_accessors
from hvdspark.estimators.from_module import fitted_of
from hvdspark.estimators.keywords import keyword_only
from hvdspark.estimators.module import ModuleEstimator, ModuleModel
from hvdspark.estimators.names import names_of_params
from hvdspark.estimators.scorer import SCORES
from hvdspark.estimators.torch_params import TorchScoringParams, TorchTrainingParams
from hvdspark.events import FitListener
from hvdspark.train.callbacks import Callback


@accessors
class TorchEstimator(ModuleEstimator["TorchModel"], TorchScoringParams, TorchTrainingParams):
    """Trains a `torch.nn.Module` on a DataFrame with Horovod, on `numWorkers` Spark tasks.

    The module is called with one tensor for each column of `featureCols`: [rows] for numbers, [rows, width] for
    vectors and arrays of one length, `hvdspark.data.Ragged` for other arrays. Integers arrive as int64, other
    numbers as float32. It returns a tensor ([rows], [rows, 1] or [rows, width]), or a tuple, list or dict of them.

    Args:
        model: the module. Its weights are where training starts; the module itself is not changed.
        loss: a name ("bce_with_logits", "bce", "mse", "l1", "huber", "cross_entropy", ...), a torch loss module, or a
            callable (output, label) -> loss of each row or their mean. For several labels a list of these, or one
            callable taking the tuples (outputs, labels), as also where several outputs serve one label.
        optimizer: a name ("adam", "adamw", "sgd", "adagrad", "rmsprop"), a `torch.optim` class, a `functools.partial`
            of one, a callable taking the parameters, or an optimizer made on `model.parameters()`.
        callbacks: `hvdspark.train.Callback` objects; they run on every rank.
        listeners: `hvdspark.events.FitListener` objects, told on the driver what happens in a fit. They are not saved.

    `predictionCol` is what the module returns, as it is: logits, with `loss="bce_with_logits"`. Set `probabilityCol` or
    `rawPredictionCol`, and it is the class, as for the classifiers of Spark ML.

    Everything else is a Param: see `explainParams()`. Gradients are means over the rows (or weights) of the global
    batch, so `batchSize` and `learningRate` mean the same for any number of workers.

    Example:
        >>> estimator = TorchEstimator(model=net, loss="bce_with_logits", featureCols=["features"], labelCol="label",
        ...                            numWorkers=2, batchSize=4096, epochs=3)
        >>> model = estimator.fit(train)
        >>> scored = model.transform(test)
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
        featureCols: list[str] | None = None,
        labelCol: str | None = None,
        labelCols: list[str] | None = None,
        predictionCol: str | None = None,
        probabilityCol: str | None = None,
        rawPredictionCol: str | None = None,
        threshold: float | None = None,
        outputCols: list[str] | None = None,
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
        lossWeights: list[float] | None = None,
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
        if wants_classes(self):
            return _class_columns(self)
        names: list[str] = self.getOrDefault("outputCols") if self.isDefined("outputCols") else []
        return names or [self.getOrDefault("predictionCol")]

    def _columns(self, dataset: DataFrame) -> tuple[list[str], list[str]]:
        if not self.isDefined("featureCols"):
            raise ConfigurationError("not set", where="featureCols", hint="name at least one input column")
        value = self.getOrDefault
        return value("featureCols"), value("labelCols") if self.isDefined("labelCols") else [value("labelCol")]

    def _loss_before(self) -> Any:
        loss = self.getLoss()
        if loss is None:
            raise ConfigurationError("not set", where="loss", hint='for example loss="bce_with_logits"')
        return loss

    def _loss_weights(self) -> Sequence[float]:
        weights: list[float] = self.getOrDefault("lossWeights")
        return weights

    def _new_model(self) -> TorchModel:
        return TorchModel()


@model_accessors(TorchScoringParams)
class TorchModel(ModuleModel, TorchScoringParams, TorchTrainingParams):
    """A fitted module: a URI in the store and a small description. Scores DataFrames in place.

    `transform` starts no job, keeps every input column and adds `predictionCol`: a double for an output of [rows] or
    [rows, 1], an ML vector for [rows, width]. A module with several outputs fills `outputCols` instead, or where these
    are not set `predictionCol` and then `<predictionCol>_1`, `_2`, ... (dict outputs: `<predictionCol>_<key>`).

    With `probabilityCol` or `rawPredictionCol` set (also on the fitted model), these are added as vectors, and
    `predictionCol` is the class: 1.0 where the probability is above `threshold`, or the most probable of several.
    """

    @classmethod
    def fromModule(
        cls,
        module: nn.Module,
        *,
        inputCols: list[str],
        example: DataFrame,
        predictionCol: str | None = None,
        outputCols: list[str] | None = None,
        handleInvalid: str | None = None,
        batchSize: int = 64,
        storeUri: str | None = None,
        allowPickle: bool | None = None,
    ) -> TorchModel:
        """A Transformer of a module that is trained already, without a fit. It can be saved and loaded as any other.

        The module is called in evaluation mode, as a fitted one is, with one tensor for each column. A binary column
        (files, such as images) arrives as `hvdspark.data.Ragged` of uint8: row i is
        `values[offsets[i] : offsets[i + 1]]`; what is in it is for the module to decode.

        Args:
            module: with its weights, which are copied into the store; on the CPU.
            inputCols: columns in the order of the module's arguments; the Param featureCols of the model.
            example: rows like those to be scored. The module is called with the first eight, here, to know what it
                returns. Arrays that all have one length there must have it everywhere.
            predictionCol, outputCols, handleInvalid, storeUri, allowPickle: Params of the model.
            batchSize: most rows of one call of the module.

        Raises:
            ConfigurationError, SchemaError, DataError: the module cannot be called with these columns.
            StoreError: the store cannot be written, or executors do not see it.
        """
        model = cls()
        given: dict[str, Any] = {
            "predictionCol": predictionCol,
            "outputCols": outputCols,
            "handleInvalid": handleInvalid,
        }
        given |= {"storeUri": storeUri, "allowPickle": allowPickle, "featureCols": inputCols, "batchSize": batchSize}
        for name, value in given.items():
            if value is not None:
                model.set(model.getParam(name), value)
        with names_of_params():
            model._fitted = fitted_of(
                module,
                model.getOrDefault("featureCols"),
                example,
                model.getStoreUri(),
                chosen=storeUri is not None,
                most_rows=model.getOrDefault("batchSize"),
            )
        return model

    def _with_outputs(self, schema: StructType) -> StructType:
        names = self._output_columns()
        check_new_columns(schema, names)
        if wants_classes(self):
            types = [VectorUDT()] * (len(names) - 1) + [DoubleType()]
        else:
            types = [VectorUDT() if output.is_vector else DoubleType() for output in self._state.outputs]
        return StructType([*schema.fields, *(StructField(n, t, True) for n, t in zip(names, types, strict=True))])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        self.transformSchema(dataset.schema)
        rows, scores = self._scored(dataset)
        outputs = self._state.outputs
        if wants_classes(self):
            score = self._filled(F.col(SCORES)) if outputs[0].is_vector else F.col(SCORES)
            classes = as_classes(self._state.result.loss, score, self.getOrDefault("threshold"))
            return with_classes(self, rows, scores, classes)
        if len(outputs) == 1:  # a plain column costs Spark less than a struct of one
            values = [scores]
        else:
            rows = rows.withColumn(SCORES, scores)
            values = [F.col(f"{SCORES}.output_{k}") for k in range(len(outputs))]
        columns = {
            name: array_to_vector(self._filled(value)) if output.is_vector else value
            for name, value, output in zip(self._output_columns(), values, outputs, strict=True)
        }
        return rows.withColumns(columns).drop(SCORES)

    def _rule(self) -> ClassRule | None:
        threshold = self.getOrDefault("threshold")
        return ClassRule(self._state.result.loss, threshold, as_returned=True) if wants_classes(self) else None

    def _output_columns(self) -> list[str]:
        outputs = self._state.outputs
        prediction = self.getOrDefault("predictionCol")
        if wants_classes(self):
            check_classifies(self._state.result.loss, self._state.result.outputs)
            return _class_columns(self)
        if not self.isDefined("outputCols"):
            return [prediction, *(f"{prediction}_{o.name or k}" for k, o in enumerate(outputs[1:], start=1))]
        names: list[str] = self.getOrDefault("outputCols")
        check_names(names, len(outputs))
        return names


def _class_columns(params: TorchScoringParams) -> list[str]:
    """Names of raw prediction and probability, as far as they are wanted, and of the class."""
    others = [params.getOrDefault(name) for name in ("rawPredictionCol", "probabilityCol")]
    return [*(name for name in others if name), params.getOrDefault("predictionCol")]
