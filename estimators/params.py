"""Params that the estimators share, and their models. How Params are declared and checked is in `declare`."""

from __future__ import annotations

import inspect
from typing import Any
from urllib.parse import urlsplit

from pyspark.ml.param import TypeConverters
from pyspark.ml.param.shared import (
    HasHandleInvalid,
    HasLabelCol,
    HasPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from hvdspark.data.dataset.selection import HANDLE_INVALID
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.declare import model_uri, number, numbers_by_name, of_spec, one_of, param
from hvdspark.estimators.default_store import default_uri
from hvdspark.estimators.defaults import Pace
from hvdspark.estimators.reliability_params import ReliabilityParams
from hvdspark.launch import check_environment, run
from hvdspark.launch.devices import DEVICES
from hvdspark.ranges import Range
from hvdspark.specs import TrainSpec
from hvdspark.train.schedule import SCHEDULES

# Fields of `TrainSpec`, and the Param that each comes from. What is not set has the field's default.
SPEC_PARAMS = {
    "batch_size": "batchSize",
    "epochs": "epochs",
    "learning_rate": "learningRate",
    "seed": "seed",
    "shuffle": "shuffle",
    "shuffle_rows": "shuffleRows",
    "precision": "precision",
    "accumulation_steps": "gradientAccumulationSteps",
    "gradient_clip_norm": "gradientClipNorm",
    "compression": "gradientCompression",
    "patience": "earlyStoppingPatience",
    "schedule_args": "learningRateScheduleArgs",
    "checkpoint_interval_steps": "checkpointIntervalSteps",
    "checkpoint_interval_seconds": "checkpointIntervalSeconds",
}
# How ranks are launched has the defaults of `hvdspark.run`.
_OF_RUN = inspect.signature(run).parameters


def fraction(value: Any) -> float:
    number = float(TypeConverters.toFloat(value))
    if not 0 < number < 1:
        raise ConfigurationError("out of range", value=value, where="validationFraction", hint="between 0 and 1")
    return number


def environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"Could not convert a {type(value).__name__} to a dict of strings")
    return check_environment(value)


def tracking_uri(value: Any) -> str:
    uri = str(TypeConverters.toString(value))
    if urlsplit(uri).password is not None:
        raise ConfigurationError(
            "a password would be saved with the estimator",
            where="trackingUri",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    return uri


class ScoringParams(HasPredictionCol, HasHandleInvalid):
    """Params of every estimator and its model that say how rows are scored."""

    handleInvalid = param(
        "handleInvalid",
        "null or NaN in a feature: error, skip (drop the row) or keep, the same in fit and transform",
        one_of("handleInvalid", *HANDLE_INVALID),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(predictionCol="prediction", handleInvalid="error")


class TrainingParams(HasLabelCol, HasWeightCol, HasValidationIndicatorCol, HasSeed, ReliabilityParams):
    """Params of every estimator; its model carries them."""

    validationFraction = param(
        "validationFraction",
        "fraction of the rows held out for validation, each drawn by itself, between 0 and 1; not together with "
        "validationIndicatorCol; where it is not set, none is drawn",
        fraction,
    )
    validationGroupCol = param(
        "validationGroupCol",
        "column of any type but map and variant whose equal values are held out together, such as all rows of a user; "
        "null is a value. validationFraction is then the fraction of its values; where it is not set, every row is "
        "drawn by itself",
        TypeConverters.toString,
    )
    numWorkers = number(
        "numWorkers",
        "number of ranks, one for each Spark task ({range})",
        TypeConverters.toInt,
        Range(1),
    )
    batchSize = of_spec(
        "batchSize",
        "batch_size",
        "rows of the global batch, over all ranks ({range})",
        TypeConverters.toInt,
    )
    epochs = of_spec(
        "epochs",
        "epochs",
        "most passes over the training rows ({range})",
        TypeConverters.toInt,
    )
    learningRate = of_spec(
        "learningRate",
        "learning_rate",
        "learning rate, unless the optimizer carries its own; never rescaled by numWorkers ({range})",
        TypeConverters.toFloat,
    )
    learningRateSchedule = param(
        "learningRateSchedule",
        "how the learning rate changes from step to step: constant, cosine, linear or step",
        one_of("learningRateSchedule", "constant", *SCHEDULES),
    )
    learningRateScheduleArgs = of_spec(
        "learningRateScheduleArgs",
        "schedule_args",
        "numbers for the schedule: warmup_steps, min_factor (cosine, linear), step_size, gamma (step)",
        numbers_by_name,
    )
    storeUri = param(
        "storeUri",
        "directory for the data during fit and for the fitted weights, reachable from all executors; a path without a "
        "scheme is on the file system of fs.defaultFS; where it is not set, hvdspark in this user's directory for data "
        "($XDG_DATA_HOME, or ~/.local/share)",
        TypeConverters.toString,
    )
    warmStartFrom = param(
        "warmStartFrom",
        "trained model to begin with: a fitted model, or the URI of one (its uri, or where it was saved). Weights and "
        "embeddings of the same name and shape are taken over, all else begins anew, as the optimizers do; where it is "
        "not set, everything begins anew",
        model_uri,
    )
    shuffle = of_spec("shuffle", "shuffle", "whether rows are reshuffled in every epoch", TypeConverters.toBoolean)
    shuffleRows = of_spec(
        "shuffleRows",
        "shuffle_rows",
        "rows that each rank shuffles at a time, held in memory ({range})",
        TypeConverters.toInt,
    )
    precision = of_spec(
        "precision",
        "precision",
        "arithmetic of training steps: float32, bfloat16 (autocast), or auto: bfloat16 where all ranks' "
        "hardware multiplies it (AMX, tensor cores); validation and scoring are always float32",
    )
    device = param(
        "device",
        "where ranks compute: auto (the GPU that Spark assigns to the task, if any), cpu or cuda",
        one_of("device", *DEVICES),
    )
    gradientAccumulationSteps = of_spec(
        "gradientAccumulationSteps",
        "accumulation_steps",
        "global batches whose gradients are averaged before one optimizer step ({range})",
        TypeConverters.toInt,
    )
    gradientClipNorm = of_spec(
        "gradientClipNorm",
        "gradient_clip_norm",
        "largest L2 norm of all gradients together, sharded embeddings included ({range}); where it is not set, "
        "nothing is clipped",
        TypeConverters.toFloat,
    )
    gradientCompression = of_spec(
        "gradientCompression",
        "compression",
        "gradients on the wire: none or fp16",
    )
    metrics = param(
        "metrics",
        "metrics on the validation rows: logloss, auc, accuracy, mse, mae; where they are not set, those that suit the "
        "loss",
        TypeConverters.toListString,
    )
    monitor = param(
        "monitor",
        "what early stopping and the choice of the best epoch look at: a column of the history, as val_loss or "
        "val_auc; where it is not set, val_loss with validation rows, else train_loss",
        TypeConverters.toString,
    )
    earlyStoppingPatience = of_spec(
        "earlyStoppingPatience",
        "patience",
        "epochs without improvement after which training stops ({range}); 0 never stops early",
        TypeConverters.toInt,
    )
    env = param(
        "env",
        "environment variables of the ranks by name, such as HOROVOD_TIMELINE or NCCL_SOCKET_IFNAME; they win over "
        "spark.executorEnv. Saved with the estimator: no place for secrets",
        environment,
    )
    startTimeout = number(
        "startTimeout",
        "seconds within which the ranks must get their task slots, and then once more be ready to train ({range})",
        TypeConverters.toFloat,
        Range(0, open=True),
    )
    trackingUri = param(
        "trackingUri",
        "MLflow server or store that the fit is written to, such as http://host:5000; empty: nothing is written. Where "
        "it is not set, that of the run that is active where fit is called, if any. Saved with the estimator: no place "
        "for secrets, MLflow reads MLFLOW_TRACKING_TOKEN and others of that kind",
        tracking_uri,
    )
    allowPickle = param(
        "allowPickle",
        "whether save, of estimator or fitted model, may pickle Python objects that cannot be described; loading "
        "them runs their code",
        TypeConverters.toBoolean,
    )

    def getStoreUri(self) -> str:
        """Value of storeUri, or this user's own directory on this machine: no default that a saved object carries."""
        return str(self.getOrDefault("storeUri")) if self.isDefined("storeUri") else default_uri()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # pyspark's own default of the seed is the hash of the class name, which differs from process to process.
        self._setDefault(
            labelCol="label",
            numWorkers=_OF_RUN["num_workers"].default,
            learningRateScheduleArgs={},
            device=_OF_RUN["device"].default,
            env={},
            startTimeout=_OF_RUN["start_timeout_s"].default,
            allowPickle=False,
            **{
                name: getattr(TrainSpec, field)
                for field, name in SPEC_PARAMS.items()
                if getattr(TrainSpec, field, None) is not None
            },
        )

    def pace(self, rows: int) -> Pace:
        """How fast a fit goes through so many training rows."""
        value = self.getOrDefault
        return Pace(value("batchSize"), value("epochs"), value("learningRateSchedule"))
