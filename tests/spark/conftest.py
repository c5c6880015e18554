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
