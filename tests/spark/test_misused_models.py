"""What newcomers do with fitted models, and with what they saved, that cannot be: answered at once, with what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.errors import ConfigurationError, PersistenceError, SchemaError
from hvdspark.estimators import (
    CTRClassificationModel,
    CTRClassifier,
    TorchClassificationModel,
    TorchClassifier,
    TorchModel,
    TorchRegressionModel,
    TorchRegressor,
)
from tests.spark.toys import linear

pytestmark = pytest.mark.spark

SAVED = Path(__file__).parent.parent / "fixtures" / "models-0.1.0"
KNOWN = json.loads((SAVED / "predictions.json").read_text())
# By the folder of each: its class, and a column that it takes.
MODELS: dict[str, tuple[Any, str]] = {
    "deepfm": (CTRClassificationModel, "page"),
    "classifier": (TorchClassificationModel, "v"),
    "regressor": (TorchRegressionModel, "v"),
    "from-module": (TorchModel, "v"),
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    data = spark.createDataFrame([tuple(row.values()) for row in KNOWN["rows"]], KNOWN["schema"])
    return VectorAssembler(inputCols=["a", "b"], outputCol="v").transform(data)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_are_not_those_of_training(rows: DataFrame, name: str) -> None:
    cls, column = MODELS[name]
    model = cls.load(str(SAVED / name))
    with pytest.raises(SchemaError, match=f"column not found: '{column}'.*Hint: the DataFrame has"):
        model.transform(rows.drop(column))
    with pytest.raises(SchemaError, match=r"trained (on|with).*(in|column) '?\w+'?.*Hint: "):
        model.transform(rows.withColumn(column, F.lit(1.5)))
    with pytest.raises(SchemaError, match="exists already: '.*rediction'.*Hint: drop it, or choose another name"):
        model.transform(model.transform(rows))
    with pytest.raises(ConfigurationError, match=r"not a DataFrame of Spark: 'pandas.*\(in transform\)"):
        model.transform(pd.DataFrame({column: [1.0]}))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_saved_is_not_replaced_unasked(spark: SparkSession, tmp_path: Path, name: str) -> None:
    model, path = MODELS[name][0].load(str(SAVED / name)), str(tmp_path / "m")
    model.save(path)
    with pytest.raises(PersistenceError, match=r"exists already.*/m.*Hint: write\(\).overwrite\(\).save\(path\)"):
        model.save(path)
    model.write().overwrite().save(path)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("nowhere", "give the path that save was given; there is no such directory"),
        ("", "give the path that save was given$"),
        ("weights", r"weights of a fitted model: model.save\(path\) makes what load reads"),
    ],
)
def test_what_was_not_saved_is_not_loaded(spark: SparkSession, tmp_path: Path, path: str, hint: str) -> None:
    (tmp_path / "weights").symlink_to(SAVED / "classifier" / "data")
    for cls in (TorchModel, CTRClassifier):
        with pytest.raises(PersistenceError, match=f"nothing was saved here.*Hint: .*{hint}"):
            cls.load(str(tmp_path / path))
    with pytest.raises(PersistenceError, match=r"another class was saved here: '.*TorchClassificationModel'.*Hint: "):
        TorchModel.load(str(SAVED / "classifier"))


ESTIMATORS = [linear(), TorchClassifier(model=nn.Linear(3, 1)), TorchRegressor(model=nn.Linear(3, 1)), CTRClassifier()]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
def test_only_dataframes_of_spark_are_fitted(estimator: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"not a DataFrame of Spark: 'pandas.*' \(in fit\). Hint: spark.createDataFrame"
    ):
        estimator.fit(pd.DataFrame({"x": [1.0], "y": [1]}))


def test_only_dataframes_of_spark_are_an_example() -> None:
    example: Any = pd.DataFrame({"x": [1.0]})
    with pytest.raises(ConfigurationError, match=r"not a DataFrame of Spark.*\(in example\)"):
        TorchModel.fromModule(nn.Linear(1, 1), inputCols=["x"], example=example)
