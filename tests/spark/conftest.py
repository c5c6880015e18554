"""What several files of this folder need once for the whole run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from hvdspark.estimators import TorchModel
from hvdspark.store import Store
from tests.spark.toys import linear, separable


@pytest.fixture(scope="session")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    store = tmp_path_factory.mktemp("store").as_uri()
    return linear(epochs=8, storeUri=store, validationIndicatorCol="is_validation").fit(separable(spark))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "store"))
    yield store
    gc.collect()
    assert store.list("datasets") == [], "no dataset outlives the DataFrames of its test"


@pytest.fixture
def experiment(mlflow_uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of an experiment of this test's own, in a real server that the environment names."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    made = str(MlflowClient(mlflow_uri).create_experiment(request.node.name))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made)
    return made
