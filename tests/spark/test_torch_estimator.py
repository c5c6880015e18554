"""`TorchEstimator` on a real session: what it learns, from which columns, on how many ranks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import (
    ConfigurationError,
)
from hvdspark.estimators import TorchModel
from tests.spark.toys import TwoHeads, linear, scores, separable

pytestmark = pytest.mark.spark


class IdsAndNumbers(nn.Module):
    """Several feature columns: ids, a vector, a number and lists of ids."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.levels, self.width = levels, width
        self.ids = nn.Embedding(levels, 4)
        self.bags = nn.EmbeddingBag(levels, 4, mode="sum", include_last_offset=True)
        self.out = nn.Linear(4 + 4 + width + 1, 1)

    def forward(self, ids: Tensor, vector: Tensor, number: Tensor, lists: Ragged) -> Tensor:
        assert ids.dtype == torch.int64
        assert vector.shape[1] == self.width
        bags = self.bags(lists.values, lists.offsets)  # [rows, 4]
        return self.out(torch.cat([self.ids(ids), bags, vector, number.unsqueeze(1)], dim=1))  # [rows, 1]


def count_jobs(spark: SparkSession, action: Callable[[], Any]) -> int:
    group = f"count-{os.urandom(4).hex()}"
    spark.sparkContext.setJobGroup(group, "")
    try:
        action()
        return len(spark.sparkContext.statusTracker().getJobIdsForGroup(group))
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


def test_it_learns(spark: SparkSession, fitted: TorchModel) -> None:
    scored = fitted.transform(separable(spark))
    assert BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="prediction").evaluate(scored) > 0.97


def test_transform_is_a_plan_that_keeps_every_column(spark: SparkSession, fitted: TorchModel) -> None:
    odd = separable(spark).withColumns(
        {"a.b`c": F.lit(1), "map": F.create_map(F.lit("k"), F.lit(2)), "when": F.current_timestamp()}
    )
    holder: list[DataFrame] = []
    assert count_jobs(spark, lambda: holder.append(fitted.transform(odd))) == 0
    assert holder[0].columns == [*odd.columns, "prediction"]
    assert holder[0].schema["prediction"].dataType.simpleString() == "double"
    assert holder[0].schema == fitted.transformSchema(odd.schema)
    assert holder[0].drop("prediction", "when").collect() == odd.drop("when").collect()


def test_transform_is_the_training_forward(spark: SparkSession, fitted: TorchModel) -> None:
    rows = separable(spark).select("id", "x").collect()
    with torch.no_grad():
        expected = fitted.module()(torch.tensor(np.array([row["x"].toArray() for row in rows]), dtype=torch.float32))
    found = scores(fitted.transform(separable(spark, partitions=7)))
    assert max(abs(found[row["id"]] - value.item()) for row, value in zip(rows, expected, strict=True)) < 1e-6


def test_scoring_an_empty_dataframe(spark: SparkSession, fitted: TorchModel) -> None:
    assert fitted.transform(separable(spark).limit(0)).count() == 0


def test_summary(fitted: TorchModel) -> None:
    summary = fitted.summary
    assert fitted.hasSummary
    assert [row["epoch"] for row in summary.history] == list(range(8))
    assert {"train_loss", "val_loss", "val_auc", "val_accuracy", "val_logloss", "rows_per_s"} <= set(summary.history[0])
    assert summary.history[-1]["val_auc"] > 0.97
    assert summary.to_pandas().shape[0] == 8
    assert "val_auc" in repr(summary)
    assert "<table" in summary._repr_html_()


def test_a_model_shows_that_it_is_one(fitted: TorchModel) -> None:
    assert re.fullmatch(r"TorchModel: uid=TorchEstimator_\w+, epochs=8, train_loss=0\.\d+, .*val_loss=.*", repr(fitted))
    assert repr(TorchModel()) == "TorchModel: not fitted"


def test_summary_plot(fitted: TorchModel) -> None:
    import matplotlib

    matplotlib.use("Agg")
    axes = fitted.summary.plot("train_loss", "val_loss")
    assert [line.get_label() for line in axes.lines] == ["train_loss", "val_loss", "best epoch"]


@pytest.mark.slow
def test_several_feature_columns(spark: SparkSession, store_uri: str) -> None:
    data = spark.range(0, 300, 1, 4).select(
        "id",
        F.when(F.col("id") % 3 == 0, array_to_vector(F.array(F.lit(0.0), F.col("id") / 300)))
        .otherwise(array_to_vector(F.array(F.col("id") / 300, F.lit(1.0))))
        .alias("vector"),
        (F.col("id") % 7).alias("key"),
        (F.col("id") / 300).cast("float").alias("number"),
        F.expr("CASE WHEN id % 5 = 0 THEN CAST(array() AS array<bigint>) ELSE array(id % 9, id % 4) END").alias(
            "lists"
        ),
        (F.col("id") % 2).cast("double").alias("y"),
    )
    sparse = spark.createDataFrame([(1000, Vectors.sparse(2, [1], [0.5]), 1, 0.5, [3], 1.0)], data.schema)
    data = data.union(sparse)
    model = linear(
        model=IdsAndNumbers(levels=10, width=2),
        optimizer="adam",
        featureCols=["key", "vector", "number", "lists"],
        storeUri=store_uri,
    ).fit(data)
    found = scores(model.transform(data))
    rows = data.collect()
    lengths = [len(row["lists"]) for row in rows]
    with torch.no_grad():
        expected = model.module()(
            torch.tensor([row["key"] for row in rows]),
            torch.tensor(np.array([row["vector"].toArray() for row in rows]), dtype=torch.float32),
            torch.tensor([row["number"] for row in rows]),
            Ragged(
                torch.tensor([key for row in rows for key in row["lists"]]),
                torch.tensor([0, *np.cumsum(lengths)]),
            ),
        )
    for row, value in zip(rows, expected, strict=True):
        assert found[row["id"]] == pytest.approx(value.item(), abs=1e-6)


def test_ids_beyond_float_precision_survive(spark: SparkSession, store_uri: str) -> None:
    class Parity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, ids: Tensor) -> Tensor:
            return (ids % 1000).float() + 0 * self.scale

    big = 2**62
    data = spark.range(0, 50, 1, 2).select("id", (F.col("id") + big).alias("key"), F.lit(0.0).alias("y"))
    model = linear(model=Parity(), loss="mse", featureCols=["key"], numWorkers=1, storeUri=store_uri).fit(data)
    assert scores(model.transform(data)) == {k: float((k + big) % 1000) for k in range(50)}


def test_several_outputs(spark: SparkSession, store_uri: str) -> None:
    data = separable(spark).withColumn("class", (F.col("id") % 4).cast("long"))
    estimator = linear(
        model=TwoHeads(),
        loss=["bce_with_logits", "cross_entropy"],
        labelCols=["y", "class"],
        numWorkers=1,
        storeUri=store_uri,
    )
    model = estimator.fit(data)
    assert any("TwoHeads.calls" in warning and "register_buffer" in warning for warning in model.summary.warnings)
    scored = model.transform(data)
    assert scored.columns == [*data.columns, "prediction", "prediction_1"]
    assert isinstance(scored.schema["prediction_1"].dataType, VectorUDT)
    assert {len(vector) for vector in scores(scored, "prediction_1").values()} == {4}
    named = model.copy().setOutputCols(["click", "class_scores"])
    assert named.transform(data).columns == [*data.columns, "click", "class_scores"]
    with pytest.raises(ConfigurationError, match="returns 2 outputs"):
        model.copy().setOutputCols(["click"]).transform(data)


@pytest.mark.slow  # tests/ranks has it, and test_ctr.py for the other estimator
@pytest.mark.parametrize("weight", [None, "w"])
def test_any_number_of_ranks_gives_the_same_weights(spark: SparkSession, store_uri: str, weight: str | None) -> None:
    # 600 rows in batches of 64: the last one is ragged. Without shuffling, global batches do not depend on the ranks.
    weights = []
    for size in (1, 3):
        estimator = linear(numWorkers=size, shuffle=False, weightCol=weight, storeUri=store_uri, optimizer="adam")
        weights.append(estimator.fit(separable(spark, partitions=4)).module().state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.slow  # tests/unit/train/test_loop.py has it for ranks
def test_the_seed_decides(spark: SparkSession, store_uri: str) -> None:
    first, again, other = (
        linear(seed=seed, numWorkers=1, storeUri=store_uri).fit(separable(spark)).module().state_dict()["0.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fit_leaves_the_users_module_alone(spark: SparkSession, store_uri: str) -> None:
    estimator = linear(numWorkers=1, epochs=1, storeUri=store_uri)
    before = estimator.getModel()[0].weight.clone()
    estimator.fit(separable(spark))
    assert torch.equal(estimator.getModel()[0].weight, before)


def test_uneven_tiny_and_empty_partitions(spark: SparkSession, store_uri: str) -> None:
    data = separable(spark, rows=70, partitions=1).repartition(16, (F.col("id") < 60).cast("int"))
    sizes = [len(part) for part in data.rdd.glom().collect()]
    assert sizes.count(0) >= 10
    model = linear(batchSize=16, epochs=1, numWorkers=3, storeUri=store_uri).fit(data)
    assert model.summary.history[0]["rows"] == 70


def test_fewer_rows_than_ranks(spark: SparkSession, store_uri: str) -> None:
    model = linear(numWorkers=3, storeUri=store_uri).fit(separable(spark, rows=2))
    assert model.summary.history[0]["rows"] == 2
