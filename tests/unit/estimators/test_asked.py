"""What Params come to, without a session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql.types import StructType

from hvdspark.estimators import CTRClassifier, TorchClassifier
from hvdspark.estimators.asked import columns_of

SCHEMA = StructType.fromJson(
    {"fields": [{"name": name, "type": "double", "nullable": True, "metadata": {}} for name in ("x", "y", "w")]}
)
ROWS: Any = SimpleNamespace(schema=SCHEMA)  # of which nothing else is asked


@pytest.mark.parametrize("kind", [TorchClassifier, CTRClassifier])
def test_an_empty_name_of_a_column_is_none_as_in_spark_ml(kind: type[Any]) -> None:
    """As pyspark's doc of weightCol says, and as a grid over weightCol=["", "w"] means it."""
    empty = kind(weightCol="", validationIndicatorCol="", validationGroupCol="", validationFraction=0.5)
    columns = columns_of(empty, ROWS, ["x"], ["y"])
    assert columns.weight is None
    assert (columns.selection.validation, columns.selection.group) == (0.5, None)
    assert columns_of(empty.setWeightCol("w"), ROWS, ["x"], ["y"]).weight == "w"
