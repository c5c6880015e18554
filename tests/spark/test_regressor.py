"""TorchRegressor: Spark's own shapes and evaluator, plain least squares as the oracle."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.regression import LinearRegression
from pyspark.sql import SparkSession
from torch import nn

from hvdspark.errors import ConfigurationError, SchemaError
from hvdspark.estimators import TorchRegressor
from tests.spark.test_classifier import column, points
from tests.spark.toys import files_in

pytestmark = pytest.mark.spark


def test_a_module_alone_makes_a_regressor(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    data = points(spark).selectExpr("*", "3 * a - b + c * c + 7 AS y").cache()
    torch.manual_seed(0)
    descent = functools.partial(torch.optim.SGD, lr=0.3)
    settings: dict[str, Any] = {"labelCol": "y", "weightCol": "w", "storeUri": store_uri, "precision": "float32"}
    estimator = TorchRegressor(model=nn.Linear(3, 1), optimizer=descent, batchSize=1000, epochs=60, **settings)
    model = estimator.setLearningRateSchedule("constant").fit(data)  # type: ignore[attr-defined]
    scored = model.transform(data).cache()
    assert scored.dtypes == [*data.dtypes, ("prediction", "double")]
    assert scored.schema == model.transformSchema(data.schema)
    with pytest.raises(SchemaError, match="column not found: 'features'"):
        model.transformSchema(data.drop("features").schema)
    oracle = LinearRegression(labelCol="y", weightCol="w", solver="normal").fit(data)
    for each in (model, oracle):
        assert each.copy({each.predictionCol: ""}).transform(data).columns == data.columns
    theirs = oracle.transform(data).cache()
    assert column(scored, "prediction") == pytest.approx(column(theirs, "prediction"), abs=1e-3)
    for metric in ("rmse", "r2", "mae"):
        evaluate = RegressionEvaluator(labelCol="y", metricName=metric).evaluate
        assert evaluate(scored) == pytest.approx(evaluate(theirs), abs=1e-3)
    PipelineModel([model]).save(str(tmp_path / "p"))
    loaded = PipelineModel.load(str(tmp_path / "p"))
    assert (column(loaded.transform(data), "prediction") == column(scored, "prediction")).all()
    row = data.orderBy("id").first()
    assert row is not None
    assert model.predict(row["features"]) == pytest.approx(column(scored, "prediction")[0], abs=1e-6)
    assert model.numFeatures == loaded.stages[0].numFeatures == 3


WRONG: list[Any] = [
    (nn.Linear(3, 4), {}, ConfigurationError, r"one number for each row.*nn.Linear\(3, 1\) instead.*TorchClassifier"),
    (nn.Linear(3, 1), {"loss": "bce_with_logits"}, ConfigurationError, "a loss of classes.*use TorchClassifier"),
    (nn.Linear(3, 1), {"labelCol": "features"}, SchemaError, "one number.*TorchEstimator"),
]


@pytest.mark.parametrize(("module", "settings", "error", "message"), WRONG)
def test_what_is_no_regressor_is_told_before_ranks_start(
    spark: SparkSession, tmp_path: Path, module: nn.Module, settings: dict[str, Any], error: type, message: str
) -> None:
    estimator = TorchRegressor(model=module, storeUri=(tmp_path / "s").as_uri(), **{"labelCol": "a", **settings})
    with pytest.raises(error, match=message):
        estimator.fit(points(spark, 60))
    assert files_in(tmp_path / "s") == []
