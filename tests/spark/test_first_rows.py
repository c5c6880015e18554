"""What a few rows on the driver change about a fit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tests.spark.toys import linear, scores, separable

pytestmark = pytest.mark.spark


def test_lazy_and_parametrized_layers_are_trained_and_a_last_sigmoid_is_warned_of(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Sequential(nn.LazyLinear(4), weight_norm(nn.Linear(4, 1)), nn.Sigmoid())
    data = separable(spark, rows=200)
    with caplog.at_level(logging.WARNING, "hvdspark"):
        model = linear(model=module, storeUri=store_uri).fit(data)
    assert "ends in Sigmoid" in caplog.text
    assert any("ends in Sigmoid" in warning for warning in model.summary.warnings)
    assert isinstance(module[0], nn.LazyLinear), "the user's module is not changed"
    rows = data.select("id", "x").collect()
    with torch.no_grad():
        expected = model.module()(torch.tensor(np.array([row["x"].toArray() for row in rows]), dtype=torch.float32))
    found = scores(model.transform(data))
    assert max(abs(found[row["id"]] - value.item()) for row, value in zip(rows, expected, strict=True)) < 1e-6
