"""CTRClassifier beside Spark ML's LogisticRegression on the same rows: one kind of columns, weights, thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from hvdspark.artifact import TrainedModel
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassifier
from tests.spark.test_classifier import SHAPES, column, shapes

pytestmark = pytest.mark.spark


def visits(spark: SparkSession, rows: int = 4000) -> DataFrame:
    """id, price, age (doubles), user, page (strings), yes (0 or 1 by all of them), w (3 for most of the ones)."""
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) for k in range(5)]
    score = draw[0] / 500 - draw[1] / 1000 + draw[2] % 2 + draw[3] % 3 / 2 + draw[4] / 500 - 2.5
    yes = (score > 0).cast("int")
    return spark.range(0, rows, 1, 2).select(
        "id",
        (draw[0] / 10).alias("price"),
        (draw[1] / 10).alias("age"),
        F.format_string("user %d", draw[2] % 20).alias("user"),
        F.format_string("page %d", draw[3] % 9).alias("page"),
        yes.alias("yes"),
        F.when((yes == 1) & (draw[4] % 5 > 0), 3.0).otherwise(F.when(draw[4] % 7 == 0, 0.0).otherwise(1.0)).alias("w"),
    )


def for_spark(numbers: list[str], categories: list[str]) -> list[Any]:
    """What brings the columns into one vector."""
    indexed, encoded = ([f"{name} {kind}" for name in categories] for kind in ("index", "code"))
    stages: list[Any] = []
    if categories:
        stages = [
            StringIndexer(inputCols=categories, outputCols=indexed),
            OneHotEncoder(inputCols=indexed, outputCols=encoded),
        ]
    return [*stages, VectorAssembler(inputCols=[*numbers, *encoded], outputCol="features")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "categories"),
    [
        pytest.param(["price", "age"], [], id="numbers"),
        pytest.param([], ["user", "page"], id="categories"),
    ],
)
def test_one_kind_of_columns_with_weights_and_thresholds(
    spark: SparkSession,
    store_uri: str,
    tmp_path: Path,
    numbers: list[str],
    categories: list[str],
) -> None:
    data = visits(spark).cache()
    regression = LogisticRegression(labelCol="yes", weightCol="w")
    theirs = Pipeline(stages=[*for_spark(numbers, categories), regression]).fit(data)
    estimator = CTRClassifier(
        architecture="lr",
        continuousCols=numbers,
        categoricalCols=categories,
        labelCol="yes",
        weightCol="w",
        numWorkers=2,
        storeUri=store_uri,
    )
    ours = estimator.fit(data)
    assert (ours.numClasses, theirs.stages[-1].numClasses) == (2, 2)
    mine, other = ours.transform(data).cache(), theirs.transform(data).cache()
    assert mine.dtypes == [*data.dtypes, *((name, kind) for name, kind in other.dtypes if name in SHAPES)]
    for weighted in ({}, {"weightCol": "w"}):
        area = BinaryClassificationEvaluator(labelCol="yes", **weighted).evaluate
        loss = MulticlassClassificationEvaluator(labelCol="yes", metricName="logLoss", **weighted).evaluate
        assert area(mine) == pytest.approx(area(other), abs=0.01)
        assert loss(mine) == pytest.approx(loss(other), abs=0.02)
    probability, said = (shapes(frame)[1][:, 1] for frame in (mine, other))
    means = [np.average(values, weights=column(mine, "w")) for values in (probability, said)]
    assert means[0] == pytest.approx(means[1], abs=0.02), "rows count as often as their weight says, 0 not at all"

    logistic = theirs.stages[-1]
    fresh = logistic.copy()  # Spark's own model keeps a threshold when thresholds are set, and then refuses the two
    for threshold in (0.0, 0.3, float(probability[7]), 1.0):
        predicted = column(ours.setThreshold(threshold).transform(data), "prediction")
        assert (predicted == (probability > threshold)).all()
        by_spark = column(logistic.setThreshold(threshold).transform(other.drop(*SHAPES)), "prediction")
        assert (by_spark == (said > threshold)).all()
    for model in (ours, fresh):
        model.setThresholds([0.6, 0.2])
        assert model.getThreshold() == pytest.approx(0.25)
    assert (column(ours.transform(data), "prediction") == (probability > ours.getThreshold())).all()
    with pytest.raises(ConfigurationError, match="one for each of the 2 classes"):
        ours.copy().setThresholds([0.1, 0.2, 0.3]).transform(data)

    ours.save(f"{tmp_path}/m")
    rows = data.orderBy("id").toPandas()
    alone = TrainedModel.read(f"{tmp_path}/m").classify({name: rows[name].to_numpy() for name in numbers + categories})
    np.testing.assert_allclose(alone.probability[:, 1], probability, atol=1e-9)
    assert (alone.prediction == (probability > ours.getThreshold())).all()
