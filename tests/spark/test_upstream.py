"""What Spark ML's transformers hand on: sparse vectors of any width, dense ones, arrays and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline
from pyspark.ml.feature import FeatureHasher, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.linalg import SparseVector, Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.artifact import TrainedModel
from hvdspark.data.dataset.schema import POSITIONS
from hvdspark.errors import DataError
from hvdspark.estimators import TorchClassificationModel, TorchClassifier
from hvdspark.estimators.columns import vectors_as_arrays
from hvdspark.store import Store
from tests.spark.datasets import rows_of, written
from tests.spark.test_classifier import classifier, column, points

pytestmark = pytest.mark.spark

WIDTH = 1 << 18


class Rows(nn.Module):
    """A linear rule that learns fast; notes how many rows of its input there were at most."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)
        self.register_buffer("most", torch.zeros((), dtype=torch.int64))
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.most.copy_(torch.maximum(self.most, torch.tensor(len(x))))
        return self.layer(x)


def visits(spark: SparkSession, rows: int = 400) -> DataFrame:
    """id, user and page (strings), price (double), label (by user and page)."""
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) for k in range(3)]
    return spark.range(0, rows, 1, 2).select(
        "id",
        F.format_string("user %d", draw[0] % 20).alias("user"),
        F.format_string("page %d", draw[1] % 10).alias("page"),
        (draw[2] / 1000).alias("price"),
        ((draw[0] % 2 + draw[1] % 2) > 0).cast("double").alias("label"),
    )


@pytest.fixture(scope="module")
def hashed(spark: SparkSession) -> DataFrame:
    hasher = FeatureHasher(inputCols=["user", "page", "price"], outputCol="features", numFeatures=WIDTH)
    return hasher.transform(visits(spark))


@pytest.fixture(scope="module")
def fitted(hashed: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> TorchClassificationModel:
    torch.manual_seed(0)
    store = tmp_path_factory.mktemp("store").as_uri()
    estimator = TorchClassifier(
        model=Rows(WIDTH), storeUri=store, numWorkers=2, batchSize=64, epochs=4, learningRate=0.1, precision="float32"
    )
    return estimator.fit(hashed)


def test_hashed_features_are_dense_for_no_more_than_a_batch(
    hashed: DataFrame, fitted: TorchClassificationModel, tmp_path: Path
) -> None:
    """400 rows of 2^18 numbers are 400 MB; 64 rows are 64 MB, and what is kept of all rows some kB."""
    assert [spec.layout for spec in fitted._state.features] == ["sparse"]
    assert (fitted.numFeatures, fitted.numClasses) == (WIDTH, 2)
    assert int(fitted.module().most) <= 32, "of a batch on two ranks"
    scored = fitted.transform(hashed).cache()
    accuracy = (column(scored, "prediction") == column(scored, "label")).mean()
    assert accuracy > 0.9, fitted.summary
    vectors = [row[0] for row in hashed.orderBy("id").select("features").collect()]
    assert all(isinstance(vector, SparseVector) for vector in vectors)
    layer = fitted.module().layer
    weight, bias = layer.weight.detach().double().numpy()[0], layer.bias.item()
    logits = np.array([vector.dot(weight) + bias for vector in vectors])
    raw = column(scored, "rawPrediction")
    np.testing.assert_allclose(raw[:, 1], logits, atol=1e-5)
    fitted.save(str(tmp_path / "m"))
    alone = TrainedModel.read(str(tmp_path / "m")).classify({"features": vectors})
    np.testing.assert_allclose(alone.raw, raw, atol=1e-5)  # other rows share a batch


def test_sparse_and_dense_rows_of_a_wide_column(
    spark: SparkSession, fitted: TorchClassificationModel, store_uri: str
) -> None:
    random = np.random.default_rng(1)
    dense = random.random(5000)
    rows: list[tuple[int, Any]] = [
        (0, Vectors.sparse(5000, [1, 4999], [1.5, -2.0])),
        (1, Vectors.dense(dense)),
        (2, Vectors.sparse(5000, [], [])),
        (3, Vectors.sparse(5000, [7], [0.0])),
    ]
    frame, names = vectors_as_arrays(spark.createDataFrame(rows, ["y", "x"]), ["x"])
    with written(frame, Store(store_uri), ["x"], fixed=names, sparse=names) as dataset:
        assert (dataset.column("x").layout, dataset.column("x").width) == ("sparse", 5000)
        found = {label: values for values, label in rows_of(Store(store_uri), dataset)}
    assert [len(found[label]) for label in range(4)] == [2, 5000, 1, 1]
    wrong = spark.createDataFrame([(0, rows[0][1])], ["id", "features"])
    with pytest.raises(Exception, match="arrays of length 262144: 5000"):
        fitted.transform(wrong).collect()


def test_narrow_vectors_are_dense_in_the_files(spark: SparkSession, store_uri: str) -> None:
    rows = [(0, Vectors.sparse(3, [1], [1.5])), (1, Vectors.dense([1.0, 2.0, 3.0]))]
    frame, names = vectors_as_arrays(spark.createDataFrame(rows, ["y", "x"]), ["x"])
    assert frame.columns[2] == f"{POSITIONS}x"
    with written(frame, Store(store_uri), ["x"], fixed=names, sparse=names) as dataset:
        assert (dataset.column("x").layout, dataset.column("x").width) == ("fixed", 3)
        assert rows_of(Store(store_uri), dataset) == [([0.0, 1.5, 0.0], 0), ([1.0, 2.0, 3.0], 1)]


def test_vectors_of_different_sizes_are_refused(spark: SparkSession, store_uri: str) -> None:
    rows = [(0, Vectors.sparse(5000, [1], [1.5])), (1, Vectors.sparse(5001, [1], [1.5]))]
    frame, names = vectors_as_arrays(spark.createDataFrame(rows, ["y", "x"]), ["x"])
    with (
        pytest.raises(DataError, match="vectors of different lengths: 5000 to 5001"),
        written(frame, Store(store_uri), ["x"], fixed=names, sparse=names),
    ):
        pass


def test_indexed_encoded_assembled_and_scaled(spark: SparkSession, store_uri: str) -> None:
    """The usual chain; its vectors are sparse in some rows and dense in others."""
    data = visits(spark, 200)
    stages = [
        StringIndexer(inputCols=["user", "page"], outputCols=["u", "p"]),
        OneHotEncoder(inputCols=["u", "p"], outputCols=["uu", "pp"]),
        VectorAssembler(inputCols=["uu", "pp", "price"], outputCol="all"),
        StandardScaler(inputCol="all", outputCol="features", withMean=False),
        classifier(nn.LazyLinear(2), storeUri=store_uri, batchSize=32, epochs=5, learningRate=0.05),
    ]
    scored = Pipeline(stages=stages).fit(data).transform(data)
    assert (column(scored, "prediction") == column(scored, "label")).mean() > 0.8


class Parts(nn.Module):
    """Takes a number, an array and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, number: Tensor, array: Tensor, vector: Tensor) -> Tensor:
        return self.layer(torch.cat([number[:, None], array, vector], dim=1))


@pytest.mark.slow
def test_numbers_arrays_and_vectors_together(spark: SparkSession, store_uri: str) -> None:
    data = points(spark, 60).withColumn("ab", F.array("a", "b"))
    model = classifier(Parts(), featureCols=["c", "ab", "features"], storeUri=store_uri).fit(data)
    assert model.numFeatures == 6
    inputs = torch.tensor(np.column_stack([column(data, "c"), column(data, "a"), column(data, "b")])).float()
    with torch.inference_mode():
        logits = model.module().layer(torch.cat([inputs, column_tensor(data)], dim=1))
    np.testing.assert_allclose(column(model.transform(data), "rawPrediction"), logits.numpy(), atol=1e-6)


def column_tensor(data: DataFrame) -> Tensor:
    return torch.tensor(column(data, "features"), dtype=torch.float32)
