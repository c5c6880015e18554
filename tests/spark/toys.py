"""What the tests of the estimators share: small modules, data that a linear rule separates, ways of looking."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.artifact.forward import OutputSpec
from hvdspark.artifact.weights import write_weights
from hvdspark.estimators import TorchEstimator, TorchModel
from hvdspark.estimators.fitted import FittedModule
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import TrainResult


class TwoHeads(nn.Module):
    """Counts its calls, where no fitted model will know of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.click, self.classes = nn.Linear(3, 1), nn.Linear(3, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return self.click(features), self.classes(features)


def separable(spark: SparkSession, rows: int = 600, partitions: int = 3) -> DataFrame:
    """id, x (vector of 3), y (0 or 1 by a linear rule), w, is_validation."""
    parts = [((F.hash("id", F.lit(k)) % 1000) / 1000.0).cast("double") for k in range(3)]
    data = spark.range(0, rows, 1, partitions).select("id", F.array(*parts).alias("a"))
    return data.select(
        "id",
        array_to_vector("a").alias("x"),
        ((F.col("a")[0] - F.col("a")[1]) > 0).cast("int").alias("y"),
        (1.0 + F.col("id") % 3).alias("w"),
        (F.col("id") % 4 == 0).alias("is_validation"),
    )


def linear(**changes: Any) -> TorchEstimator:
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(3, 1)),
        "loss": "bce_with_logits",
        "optimizer": functools.partial(torch.optim.SGD, lr=0.5),
        "featureCols": ["x"],
        "labelCol": "y",
        "batchSize": 64,
        "epochs": 2,
        "precision": "float32",
        "numWorkers": 2,
    }
    return TorchEstimator(**{**settings, **changes})


def as_fitted(
    module: nn.Module, features: Sequence[ColumnSpec], store_uri: str, *, width: int | None = None, directory: str = "m"
) -> TorchModel:
    """A model as `fit` makes one, without the fit. Its output is [rows], or [rows, width]."""
    store = Store(store_uri)
    write_weights(store, directory, module, {})
    output = OutputSpec(None, () if width is None else (width,), "float32")
    result = TrainResult((), 0, 0, None, directory, (output,), "float32", 1, {})
    model = TorchModel()
    model._fitted = FittedModule(store.uri, directory, skeleton(module), tuple(features), result)
    return model


def scores(frame: DataFrame, column: str = "prediction") -> dict[int, Any]:
    return {row["id"]: row[column] for row in frame.select("id", column).collect()}


def files_in(store: Path) -> list[str]:
    """Files in a store, but for datasets: those live as long as the DataFrame that they were made from."""
    files = [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()] if store.exists() else []
    return [name for name in files if not name.startswith("datasets/")]
