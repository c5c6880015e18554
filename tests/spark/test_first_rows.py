"""What a few rows on the driver change about a fit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hvdspark.errors import ConfigurationError
from tests.spark.toys import linear, scores, separable

pytestmark = pytest.mark.spark


def test_lazy_and_parametrized_layers_are_trained_and_a_last_sigmoid_is_warned_of(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Sequential(nn.LazyLinear(4), weight_norm(nn.Linear(4, 1)), nn.Sigmoid())
    data = separable(spark, rows=200)
    with caplog.at_level(logging.WARNING, "hvdspark"):
        model = linear(model=module, numWorkers=1, storeUri=store_uri).fit(data)
    assert "ends in Sigmoid" in caplog.text
    assert any("ends in Sigmoid" in warning for warning in model.summary.warnings)
    assert isinstance(module[0], nn.LazyLinear), "the user's module is not changed"
    rows = data.select("id", "x").collect()
    with torch.no_grad():
        expected = model.module()(torch.tensor(np.array([row["x"].toArray() for row in rows]), dtype=torch.float32))
    found = scores(model.transform(data))
    assert max(abs(found[row["id"]] - value.item()) for row, value in zip(rows, expected, strict=True)) < 1e-6


def test_a_column_may_be_feature_label_and_weight(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    # 60 rows in one batch on one rank: what plain torch does with the same tensors.
    data = separable(spark, rows=60, partitions=1).select("id", "x", (F.col("id") % 3).alias("n"))
    module, plain = (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3)) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    settings = {"labelCol": "x", "loss": "mse", "batchSize": 60, "numWorkers": 1, "storeUri": store_uri}
    with caplog.at_level(logging.WARNING, "hvdspark"):
        model = linear(model=module, **settings).fit(data)
    assert "told the answer" not in caplog.text
    x = torch.tensor(np.array([row["x"].toArray() for row in data.orderBy("id").collect()]), dtype=torch.float32)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(plain(x), x).backward()
        optimizer.step()
    for name, tensor in model.module().state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=1e-6)

    net = nn.Sequential(nn.Embedding(3, 1))
    of_one = {"featureCols": ["n"], "labelCol": "n", "weightCol": "n", "numWorkers": 1, "storeUri": store_uri}
    linear(model=net, loss="mse", **of_one).fit(data)


def test_default_metrics_suit_what_the_module_returns(spark: SparkSession, store_uri: str) -> None:
    # One label of three numbers: there is no ranking of all of them, which AUC would be about.
    data = separable(spark, rows=100).withColumn("several", F.array("y", "y", "y"))
    settings = {"labelCol": "several", "validationFraction": 0.3, "numWorkers": 1, "epochs": 1, "storeUri": store_uri}
    model = linear(model=nn.Linear(3, 3), **settings).fit(data)
    assert {"val_loss", "val_logloss", "val_accuracy"} <= set(model.summary.history[0])
    assert "val_auc" not in model.summary.history[0]
    with pytest.raises(ConfigurationError, match="auc cannot be computed"):
        linear(model=nn.Linear(3, 3), metrics=["auc"], **settings).fit(data)
