"""A fitted module as a classifier: raw prediction, probability and class beside what it returns."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.errors import ConfigurationError
from hvdspark.estimators import TorchModel
from hvdspark.estimators.classes import as_classes
from tests.spark.toys import files_in, linear, scores, separable

pytestmark = pytest.mark.spark

NAN = math.nan


def softmax(values: list[float]) -> list[float]:
    return torch.tensor(values, dtype=torch.float64).softmax(0).tolist()


# (loss, score, threshold, raw, probability, class)
CASES: list[Any] = [
    ("bce_with_logits", 1.0, 0.5, [-1.0, 1.0], [1 - 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1))], 1.0),
    ("bce_with_logits", 1.0, 0.8, [-1.0, 1.0], [1 - 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1))], 0.0),
    ("bce_with_logits", -800.0, 0.5, [800.0, -800.0], [1.0, 0.0], 0.0),
    ("bce_with_logits", NAN, 0.5, [NAN, NAN], [NAN, NAN], 0.0),
    ("bce", 0.75, 0.5, [0.25, 0.75], [0.25, 0.75], 1.0),
    ("cross_entropy", [1.0, 3.0, 2.0], 0.5, [1.0, 3.0, 2.0], softmax([1.0, 3.0, 2.0]), 1.0),
    ("cross_entropy", [-900.0, -1000.0], 0.5, [-900.0, -1000.0], [1.0, 0.0], 0.0),
    ("nll", [math.log(0.2), math.log(0.8)], 0.9, [math.log(0.2), math.log(0.8)], [0.2, 0.8], 1.0),
]


def test_scores_as_classes(spark: SparkSession) -> None:
    one = spark.range(1)
    for number, (loss, score, threshold, *_) in enumerate(CASES):
        value = F.array(*map(F.lit, score)) if isinstance(score, list) else F.lit(score)
        columns = zip(("raw", "probability", "class"), as_classes(loss, value, threshold), strict=True)
        one = one.withColumns({f"{name}{number}": column for name, column in columns})
    (row,) = one.collect()
    for number, (*_, raw, probability, prediction) in enumerate(CASES):
        assert row[f"raw{number}"] == pytest.approx(raw, abs=1e-12, nan_ok=True), CASES[number]
        assert row[f"probability{number}"] == pytest.approx(probability, abs=1e-12, nan_ok=True), CASES[number]
        assert row[f"class{number}"] == prediction, CASES[number]


def test_a_fitted_model_becomes_a_classifier_where_columns_are_named(spark: SparkSession, fitted: TorchModel) -> None:
    data = separable(spark)
    model = fitted.copy().setProbabilityCol("probability").setRawPredictionCol("rawPrediction")
    scored = model.transform(data).cache()
    assert scored.columns == [*data.columns, "rawPrediction", "probability", "prediction"]
    assert scored.schema == model.transformSchema(data.schema)
    logits, classes, probabilities = scores(fitted.transform(data)), scores(scored), scores(scored, "probability")
    for number, logit in logits.items():
        assert classes[number] == float(logit > 0)
        assert probabilities[number][1] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)
    assert BinaryClassificationEvaluator(labelCol="y").evaluate(scored) > 0.97
    assert MulticlassClassificationEvaluator(labelCol="y", metricName="accuracy").evaluate(scored) > 0.9
    strict = scores(fitted.copy().setProbabilityCol("p").setThreshold(0.9).transform(data))
    assert 0 < sum(strict.values()) < sum(classes.values())


def test_several_classes_and_what_a_log_says_of_logits(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = separable(spark).withColumn("y", (F.col("id") % 3).cast("int"))
    estimator = linear(model=nn.Linear(3, 3), loss="cross_entropy", numWorkers=1, epochs=1, storeUri=store_uri)
    with caplog.at_level(logging.WARNING, "hvdspark"):
        model = estimator.fit(data)
    assert "predictionCol will be a logit" in caplog.text
    caplog.clear()
    scored = model.setProbabilityCol("probability").transform(data)
    assert scored.columns[-2:] == ["probability", "prediction"]
    for row in scored.select("probability", "prediction").collect():
        assert sum(row["probability"]) == pytest.approx(1)
        assert row["prediction"] == float(row["probability"].argmax())
    for metric in ("accuracy", "logLoss"):
        assert MulticlassClassificationEvaluator(labelCol="y", metricName=metric).evaluate(scored) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mse"}, "does not say what is a probability"),
        ({"loss": lambda output, label: (output[:, 0] - label).square()}, "does not say what is a probability"),
        ({"labelCols": ["y", "w"], "loss": ["bce", "mse"]}, "does not say what is a probability"),
        ({"labelCol": "yyy", "model": nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()), "loss": "bce"}, "one number.*3,"),
    ],
)
def test_what_is_no_classifier_is_refused_before_ranks_start(
    spark: SparkSession, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    store = tmp_path / "s"
    data = separable(spark, rows=20).withColumn("yyy", F.array("y", "y", "y"))
    with pytest.raises(ConfigurationError, match=message):
        linear(**{"storeUri": store.as_uri(), "probabilityCol": "p", **settings}).fit(data)
    assert files_in(store) == []
