"""What hvdspark 0.1.0 saved loads and predicts the same. `tests/fixtures/models-0.1.0/write*.py` wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from torch import nn

import tests.unit.artifact.saved_before  # noqa: F401  a class that is imported is one that a save may name
from hvdspark.errors import PersistenceError
from hvdspark.estimators import (
    CTRClassificationModel,
    CTRClassifier,
    TorchClassificationModel,
    TorchClassifier,
    TorchEstimator,
    TorchModel,
    TorchRegressionModel,
    TorchRegressor,
)
from tests.recorded import as_recorded, numbers

pytestmark = pytest.mark.spark

FOLDER = Path(__file__).parent.parent / "fixtures" / "models-0.1.0"
MODELS = {
    "pipeline": PipelineModel,
    "tables": TorchModel,
    "deepfm": CTRClassificationModel,
    "lr": CTRClassificationModel,
}
KNOWN = json.loads((FOLDER / "predictions.json").read_text())


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    names = KNOWN["rows"][0]
    data = [tuple(row[name] for name in names) for row in KNOWN["rows"]]
    return spark.createDataFrame(data, KNOWN["schema"]).coalesce(1)  # one batch: sums of another shape round otherwise


def predicted(frame: DataFrame) -> list[list[Any]]:
    names = [name for name in ("p", "prediction", "rawPrediction") if name in frame.columns]
    return [[list(v) if hasattr(v, "toArray") else v for v in row] for row in frame.select(*names).collect()]


def test_models_of_before_predict_the_same(rows: DataFrame) -> None:
    found = {name: predicted(cls.load(str(FOLDER / name)).transform(rows)) for name, cls in MODELS.items()}
    assert numbers(found) == as_recorded([KNOWN["predictions"][name] for name in MODELS])


OF_VECTORS = {"classifier": TorchClassificationModel, "regressor": TorchRegressionModel, "from-module": TorchModel}


@pytest.mark.parametrize("name", OF_VECTORS)
def test_models_of_vectors_predict_the_same(rows: DataFrame, name: str) -> None:
    vectors = VectorAssembler(inputCols=["a", "b"], outputCol="v").transform(rows)
    found = predicted(OF_VECTORS[name].load(str(FOLDER / name)).transform(vectors))
    assert numbers(found) == as_recorded(KNOWN["predictions"][name])


def test_a_pickled_model_of_before_predicts_the_same(spark: SparkSession, rows: DataFrame) -> None:
    with pytest.raises(PersistenceError, match="would run code"):
        TorchModel.load(str(FOLDER / "pickled"))
    spark.conf.set("spark.hvdspark.allowPickle", "true")
    try:
        loaded = TorchModel.load(str(FOLDER / "pickled"))
    finally:
        spark.conf.unset("spark.hvdspark.allowPickle")
    assert numbers(predicted(loaded.transform(rows))) == as_recorded(KNOWN["predictions"]["pickled"])


def test_estimators_of_before_load(spark: SparkSession) -> None:
    estimator = TorchEstimator.load(str(FOLDER / "torch-estimator"))
    assert (estimator.getEpochs(), estimator.getFeatureCols(), estimator.getLoss()) == (2, ["v"], "bce_with_logits")
    assert estimator.getOptimizer().keywords == {"momentum": 0.5}
    assert [type(layer) for layer in estimator.getModel() or []] == [nn.Linear, nn.BatchNorm1d, nn.Tanh, nn.Linear]
    classifier = CTRClassifier.load(str(FOLDER / "ctr-estimator"))
    assert (classifier.getArchitecture(), classifier.getCategoricalCols()) == ("deepfm", ["user", "page", "tags"])
    for cls, name, label in ((TorchClassifier, "classifier", "label"), (TorchRegressor, "regressor", "price")):
        head = cls.load(str(FOLDER / f"{name}-estimator"))
        assert (head.getEpochs(), head.getFeaturesCol(), head.getLabelCol()) == (2, "v", label)
        assert isinstance(head.getModel(), nn.Linear)
