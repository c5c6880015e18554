"""What the tests of searches (CrossValidator, TrainValidationSplit, grids) share: candidates, and who watches them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.param import Param
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchEstimator
from hvdspark.events import DatasetReady, EpochEnded, FitEvent, FitListener, GenerationStarted, SlotsAwaited
from tests.spark.toys import linear

# The label is a rule of x, which a linear model learns with the second of these and not with the first.
RATES = [1e-6, 0.5]


class Watch(FitListener):
    """What fits wrote and when they had ranks.

    Attributes:
        bytes: size of each dataset that a fit was given, by its path.
        used: how many fits were given each.
        waited: events of waiting.
        most: ranks that ran at the same time, at most; of fits of one epoch.
    """

    def __init__(self, store_uri: str) -> None:
        self._store = Path(urlparse(store_uri).path)
        self._lock = threading.Lock()
        self._ranks: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.used: dict[str, int] = {}
        self.waited: list[SlotsAwaited] = []
        self.most = 0

    def on_event(self, event: FitEvent) -> None:
        with self._lock:
            super().on_event(event)

    def left(self) -> list[str]:
        """Datasets that are still there."""
        return [path for path in self.bytes if (self._store / path).exists()]

    def on_dataset_ready(self, event: DatasetReady) -> None:
        files = (self._store / event.dataset.path).rglob("*.parquet")
        self.bytes[event.dataset.path] = sum(file.stat().st_size for file in files)
        self.used[event.dataset.path] = self.used.get(event.dataset.path, 0) + 1

    def on_slots_awaited(self, event: SlotsAwaited) -> None:
        self.waited.append(event)

    def on_generation_started(self, event: GenerationStarted) -> None:
        self._ranks[event.run_id] = event.world_size
        self.most = max(self.most, sum(self._ranks.values()))

    def on_epoch_ended(self, event: EpochEnded) -> None:
        self._ranks.pop(event.run_id, None)  # the last that is heard of ranks which train for one epoch


def candidate(store_uri: str, **changes: Any) -> TorchEstimator:
    settings = {"optimizer": "sgd", "numWorkers": 1, "epochs": 1, "batchSize": 32, "rawPredictionCol": "raw"}
    return linear(storeUri=store_uri, **{**settings, **changes})


def clicks(store_uri: str, **changes: Any) -> CTRClassifier:
    settings = {"architecture": "lr", "categoricalCols": ["id"], "labelCol": "y", "numWorkers": 1, "epochs": 1}
    return CTRClassifier(storeUri=store_uri, **{**settings, **changes})


def classifier(store_uri: str, **changes: Any) -> TorchClassifier:
    settings = {"optimizer": "sgd", "featuresCol": "x", "labelCol": "y", "numWorkers": 1, "epochs": 1, "batchSize": 32}
    return TorchClassifier(model=nn.Linear(3, 1), storeUri=store_uri, **{**settings, **changes})


def rates(estimator: Any) -> list[dict[Param[Any], Any]]:
    """A grid of the estimator's learning rate."""
    return ParamGridBuilder().addGrid(estimator.learningRate, RATES).build()


def auc(**changes: Any) -> BinaryClassificationEvaluator:
    return BinaryClassificationEvaluator(**{"labelCol": "y", "rawPredictionCol": "raw", **changes})


def written(spark: SparkSession) -> int:
    """Bytes that this JVM, in local mode with all tasks, has written into files through Hadoop, by its own count."""
    statistics: Any = spark._jvm.org.apache.hadoop.fs.FileSystem.getGlobalStorageStatistics()  # type: ignore[union-attr]
    files = statistics.get("file")  # None until the first
    return 0 if files is None else int(files.getLong("bytesWritten"))


def unprovable(rows: DataFrame) -> DataFrame:
    """The same rows out of a function of the user's, which may read anything: nobody can prove that they stay so."""
    return rows.mapInPandas(lambda batches: batches, rows.schema)


def shifting(rows: DataFrame) -> DataFrame:
    """Rows that are others in every job: `w` is the time of reading."""
    return rows.withColumn("w", F.unix_micros(F.current_timestamp()).cast("double"))


def params_of(stage: Any) -> dict[str, Any]:
    """Values of all Params that have one, by name."""
    return {param.name: stage.getOrDefault(param) for param in stage.params if stage.isDefined(param)}


def same_params(one: Any, other: Any) -> None:
    """Assert that two stages, or Pipelines of them, are the same objects to Spark ML: class, uid, Params, parents."""
    assert (type(one), one.uid) == (type(other), other.uid)
    stages: Sequence[Any] | None = one.getStages() if hasattr(one, "getStages") else getattr(one, "stages", None)
    if stages is not None:
        others = other.getStages() if hasattr(other, "getStages") else other.stages
        assert len(stages) == len(others)
        for stage, of_other in zip(stages, others, strict=True):
            same_params(stage, of_other)
        return
    values, others = params_of(one), params_of(other)
    if "classifier" in values:  # of OneVsRest and its model
        same_params(values.pop("classifier"), others.pop("classifier"))
    for model, of_other in zip(getattr(one, "models", ()), getattr(other, "models", ()), strict=True):
        same_params(model, of_other)
    assert values == others
    for param in other.params:
        assert param.parent == one.uid
    if not type(one).__module__.startswith("hvdspark."):
        return  # Spark's own carry back defaults as values that were set, or do not
    assert {param.name: value for param, value in one._defaultParamMap.items()} == {
        param.name: value for param, value in other._defaultParamMap.items()
    }
