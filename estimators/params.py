"""Params of the estimators and their models. The only place where Params are declared.

Values are plain JSON. A Param that must lie in a range says so in its doc and is checked when it is set; what
depends on several Params is checked by `fit` before anything is started.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasHandleInvalid,
    HasLabelCol,
    HasOutputCols,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasThreshold,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from hvdspark.errors import ConfigurationError
from hvdspark.estimators.default_store import default_uri
from hvdspark.estimators.defaults import Pace
from hvdspark.launch import check_environment
from hvdspark.train.schedule import SCHEDULES

C = TypeVar("C", bound=type)
Converter = Callable[[Any], Any]


def accessors(cls: C) -> C:
    """Class decorator: give every Param of the class a `getX` and a chaining `setX`, unless it has one."""
    return _with_accessors(cls, cls)


def model_accessors(scoring: type) -> Callable[[C], C]:
    """Class decorator for fitted models: a `getX` for every Param, a `setX` for `allowPickle` and those of scoring."""
    return lambda cls: _with_accessors(cls, scoring, "allowPickle")


def setter_name(name: str) -> str:
    """ "setBatchSize" of "batchSize"."""
    return f"set{name[0].upper()}{name[1:]}"


def _with_accessors(cls: C, settable: type, *others: str) -> C:
    for name in dir(cls):
        if not isinstance(getattr(cls, name, None), Param):
            continue
        get, set_ = f"get{setter_name(name)[3:]}", setter_name(name)
        if not hasattr(cls, get):
            setattr(cls, get, _getter(name))
        if not hasattr(cls, set_) and (hasattr(settable, name) or name in others):
            setattr(cls, set_, _setter(name))
    return cls


def _getter(name: str) -> Callable[[Any], Any]:
    def get(self: Any) -> Any:
        return self.getOrDefault(name)

    get.__doc__ = f"Value of {name}, or its default."
    return get


def _setter(name: str) -> Callable[[Any, Any], Any]:
    def set_(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    set_.__doc__ = f"Set {name}; returns this object."
    return set_


def in_range(
    name: str, convert: Converter, low: float, high: float = float("inf"), open_low: bool = False
) -> Converter:
    def check(value: Any) -> Any:
        number = convert(value)
        if not (low < number <= high if open_low else low <= number <= high):
            bound = f"more than {low:g}" if open_low else f"at least {low:g}"
            limit = f" and at most {high:g}" if high != float("inf") else ""
            raise ConfigurationError("out of range", value=value, where=name, hint=f"it must be {bound}{limit}")
        return number

    return check


def one_of(name: str, *choices: str) -> Converter:
    def check(value: Any) -> str:
        plain = value.lower() if isinstance(value, str) else value
        if plain not in choices:
            close = difflib.get_close_matches(str(plain), choices, n=1)
            hint = f"did you mean {close[0]}? It is one of " if close else "one of "
            raise ConfigurationError("unknown choice", value=value, where=name, hint=hint + ", ".join(choices))
        return str(plain)

    return check


def distinct_names(name: str, *, may_be_empty: bool = False) -> Converter:
    def check(value: Any) -> list[str]:
        names: list[str] = TypeConverters.toListString(value)
        if not (names or may_be_empty) or len(set(names)) < len(names):
            raise ConfigurationError("column names must be given, each once", value=names, where=name)
        return names

    return check


def _fraction(value: Any) -> float:
    number = float(TypeConverters.toFloat(value))
    if not 0 < number < 1:
        raise ConfigurationError("out of range", value=value, where="validationFraction", hint="between 0 and 1")
    return number


def _numbers_by_name(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"Could not convert {value!r} to a dict of numbers")
    return {TypeConverters.toString(key): float(TypeConverters.toFloat(item)) for key, item in value.items()}


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"Could not convert {value!r} to a dict of strings")
    return check_environment(value)


def param(name: str, doc: str, convert: Converter) -> Any:
    return Param(Params._dummy(), name, doc, convert)


class TorchScoringParams(
    HasPredictionCol, HasProbabilityCol, HasRawPredictionCol, HasThreshold, HasOutputCols, HasHandleInvalid
):
    """Params of TorchEstimator and TorchModel."""

    predictionCol = param(
        "predictionCol",
        "what the module returns, as it is: under bce_with_logits and cross_entropy that is logits, no probability and "
        "no class. With probabilityCol or rawPredictionCol set, the class: 0.0, 1.0, ...",
        TypeConverters.toString,
    )
    probabilityCol = param(
        "probabilityCol",
        "probability of each class, a vector; for one label and the losses bce_with_logits, bce, cross_entropy, nll. "
        "Empty: no such column",
        TypeConverters.toString,
    )
    rawPredictionCol = param(
        "rawPredictionCol",
        "what a BinaryClassificationEvaluator takes, a vector: -x and x of a logit x, else a number for each class. "
        "Empty: no such column",
        TypeConverters.toString,
    )
    threshold = param(
        "threshold",
        "with probabilityCol or rawPredictionCol set and one output: rows whose probability is above are of class 1.0; "
        "between 0 and 1",
        in_range("threshold", TypeConverters.toFloat, 0, 1),
    )

    featureCols = param(
        "featureCols",
        "input columns, in the order of the module's arguments: numbers, arrays of numbers or ML vectors",
        distinct_names("featureCols"),
    )

    handleInvalid = param(
        "handleInvalid",
        "null or NaN in a feature, or inside its arrays: error, skip (drop the row) or keep (the module gets "
        "NaN; a null integer or a null array or vector is still an error), the same in fit and transform",
        one_of("handleInvalid", "error", "skip", "keep"),
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            predictionCol="prediction",
            probabilityCol="",
            rawPredictionCol="",
            threshold=0.5,
            handleInvalid="error",
        )


class TrainingParams(HasLabelCol, HasWeightCol, HasValidationIndicatorCol, HasSeed):
    """Params of every estimator; its model carries them."""

    validationFraction = param(
        "validationFraction",
        "fraction of the rows held out for validation, each drawn by itself, between 0 and 1; not together with "
        "validationIndicatorCol",
        _fraction,
    )
    validationGroupCol = param(
        "validationGroupCol",
        "column of any type but map and variant whose equal values are held out together, such as all rows of a user; "
        "null is a value. validationFraction is then the fraction of its values; where it is not set, every row is "
        "drawn by itself",
        TypeConverters.toString,
    )
    numWorkers = param(
        "numWorkers",
        "number of ranks, one for each Spark task (at least 1)",
        in_range("numWorkers", TypeConverters.toInt, 1),
    )
    batchSize = param(
        "batchSize",
        "rows of the global batch, over all ranks (at least 1)",
        in_range("batchSize", TypeConverters.toInt, 1),
    )
    epochs = param(
        "epochs",
        "most passes over the training rows (at least 1)",
        in_range("epochs", TypeConverters.toInt, 1),
    )
    learningRate = param(
        "learningRate",
        "learning rate, unless the optimizer carries its own; never rescaled by numWorkers (above 0)",
        in_range("learningRate", TypeConverters.toFloat, 0, open_low=True),
    )
    learningRateSchedule = param(
        "learningRateSchedule",
        "how the learning rate changes from step to step: constant, cosine, linear or step",
        one_of("learningRateSchedule", "constant", *SCHEDULES),
    )
    learningRateScheduleArgs = param(
        "learningRateScheduleArgs",
        "numbers for the schedule: warmup_steps, min_factor (cosine, linear), step_size, gamma (step)",
        _numbers_by_name,
    )
    storeUri = param(
        "storeUri",
        "directory for the data during fit and for the fitted weights, reachable from all executors; a path without a "
        "scheme is on the file system of fs.defaultFS; where it is not set, hvdspark in this user's directory for data "
        "($XDG_DATA_HOME, or ~/.local/share)",
        TypeConverters.toString,
    )
    shuffle = param("shuffle", "whether rows are reshuffled in every epoch", TypeConverters.toBoolean)
    shuffleRows = param(
        "shuffleRows",
        "rows that each rank shuffles at a time, held in memory (at least 1)",
        in_range("shuffleRows", TypeConverters.toInt, 1),
    )
    precision = param(
        "precision",
        "arithmetic of training steps: float32, bfloat16 (autocast), or auto: bfloat16 where all ranks' "
        "hardware multiplies it (AMX, tensor cores); validation and scoring are always float32",
        one_of("precision", "auto", "float32", "bfloat16"),
    )
    device = param(
        "device",
        "where ranks compute: auto (the GPU that Spark assigns to the task, if any), cpu or cuda",
        one_of("device", "auto", "cpu", "cuda"),
    )
    gradientAccumulationSteps = param(
        "gradientAccumulationSteps",
        "global batches whose gradients are averaged before one optimizer step (at least 1)",
        in_range("gradientAccumulationSteps", TypeConverters.toInt, 1),
    )
    gradientClipNorm = param(
        "gradientClipNorm",
        "largest L2 norm of all gradients together, sharded embeddings included (above 0); where it is not set, "
        "nothing is clipped",
        in_range("gradientClipNorm", TypeConverters.toFloat, 0, open_low=True),
    )
    gradientCompression = param(
        "gradientCompression",
        "gradients on the wire: none or fp16",
        one_of("gradientCompression", "none", "fp16"),
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
    earlyStoppingPatience = param(
        "earlyStoppingPatience",
        "epochs without improvement after which training stops; 0 never stops early",
        in_range("earlyStoppingPatience", TypeConverters.toInt, 0),
    )
    maxRestarts = param(
        "maxRestarts",
        "how often the ranks are started again, from the newest checkpoint, after a killed rank or a lost executor",
        in_range("maxRestarts", TypeConverters.toInt, 0),
    )
    env = param(
        "env",
        "environment variables of the ranks by name, such as HOROVOD_TIMELINE or NCCL_SOCKET_IFNAME; they win over "
        "spark.executorEnv. Saved with the estimator: no place for secrets",
        _environment,
    )
    startTimeout = param(
        "startTimeout",
        "seconds within which the ranks must get their task slots, and then once more be ready to train (above 0)",
        in_range("startTimeout", TypeConverters.toFloat, 0, open_low=True),
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
        self._setDefault(
            labelCol="label",
            numWorkers=2,
            learningRate=1e-3,
            learningRateScheduleArgs={},
            # pyspark's own default is the hash of the class name, which differs from process to process.
            seed=0,
            shuffle=True,
            shuffleRows=1 << 19,
            precision="auto",
            device="auto",
            gradientAccumulationSteps=1,
            gradientCompression="none",
            earlyStoppingPatience=0,
            maxRestarts=0,
            env={},
            startTimeout=600.0,
            allowPickle=False,
        )

    def pace(self, rows: int) -> Pace:
        """How fast a fit goes through so many training rows."""
        value = self.getOrDefault
        return Pace(value("batchSize"), value("epochs"), value("learningRateSchedule"))


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
        self._setDefault(batchSize=4096, epochs=1, learningRateSchedule="constant", lossWeights=[])
