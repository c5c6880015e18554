"""What several files of this folder need once for the whole run."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession

from hvdspark.estimators import TorchModel
from tests.spark.toys import linear, separable


@pytest.fixture(scope="session")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    store = tmp_path_factory.mktemp("store").as_uri()
    return linear(epochs=8, storeUri=store, validationIndicatorCol="is_validation").fit(separable(spark))
