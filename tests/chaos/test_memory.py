"""A table that outgrows the memory of its rank."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import SparkSession

from hvdspark.errors import MemoryBudgetError
from hvdspark.estimators import CTRClassifier
from hvdspark.launch.budget import RANK_BYTES, RANK_MEMORY

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(300)]

_IDS, _DIM = 100_000, 256  # 100 MiB
_RANK_MIB = 800


def test_a_table_without_room_is_named_with_its_bytes_or_evicts(spark: SparkSession, store_uri: str) -> None:
    rows = spark.range(_IDS).selectExpr("cast(id as string) AS user", "cast(id % 2 as double) AS clicked")
    settings: dict[str, Any] = {"architecture": "wide_deep", "categoricalCols": ["user"], "labelCol": "clicked"}
    settings |= {"embeddingDim": _DIM, "hiddenUnits": [8], "batchSize": 10_000, "epochs": 1, "numWorkers": 1}
    spark.conf.set(RANK_MEMORY, f"{_RANK_MIB}m")
    try:
        with pytest.raises(MemoryBudgetError, match=r"table 'user' with [\d,]+ rows on rank 0") as caught:
            CTRClassifier(storeUri=store_uri, **settings).fit(rows)
        model = CTRClassifier(storeUri=store_uri, embeddingAtLimit="evict", **settings).fit(rows)
    finally:
        spark.conf.unset(RANK_MEMORY)
    error = caught.value
    assert error.table == "user"
    assert error.limit == (_RANK_MIB << 20) - RANK_BYTES
    assert error.bytes > error.limit
    assert _IDS // 2 < model.embeddings("user").count() < _IDS
