"""What transform does with models that change, columns that change, and values that are null or NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.data.dataset.invalid import is_invalid
from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import CheckpointError, SchemaError
from hvdspark.estimators import TorchModel
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from tests.spark.toys import as_fitted, scores

pytestmark = pytest.mark.spark

BIG = 2**53 + 1  # the first integer that a float64 cannot hold


class Sums(nn.Module):
    """The sum of all numbers of a row, times a weight. Ids are counted modulo 1000."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, *inputs: Tensor | Ragged) -> Tensor:
        total = torch.zeros(1)
        for value in inputs:
            if isinstance(value, Ragged):
                padded = torch.cat([value.values.new_zeros(1), (value.values % 1000).cumsum(0)])
                value = padded[value.offsets[1:]] - padded[value.offsets[:-1]]
            elif value.dtype == torch.int64:
                value = value % 1000
            total = total + (value.sum(1) if value.dim() == 2 else value)
        return self.scale * total  # [rows]


def untrained(store_uri: str, features: Sequence[ColumnSpec], scale: float = 1.0, directory: str = "m") -> TorchModel:
    """A model as `fit` makes one, without the fit."""
    module = Sums()
    with torch.no_grad():
        module.scale.fill_(scale)
    return as_fitted(module, features, store_uri, directory=directory)


NUMBER = ColumnSpec("x", "float32", "scalar")
ID = ColumnSpec("x", "int64", "scalar")
VECTOR = ColumnSpec("x", "float32", "fixed", 2)
IDS = ColumnSpec("x", "int64", "ragged")


def with_x(spark: SparkSession, second: str, *, vector: bool = False) -> DataFrame:
    """Two rows: the first valid, the second as given. The first has an id beyond what a float64 holds."""
    kind = second.split(" AS ")[-1].rstrip(")")
    first = (
        f"CAST({f'array({BIG}L)' if kind == 'array<bigint>' else 'array(1, 2)' if 'array' in kind else 3} AS {kind})"
    )
    data = spark.sql(f"SELECT 0L AS id, {first} AS x UNION ALL SELECT 1L, {second}").coalesce(1)
    if vector:
        data = data.withColumn("x", F.when(F.col("x").isNotNull(), array_to_vector("x")))
    return data


def test_a_model_saved_again_is_scored_with_its_new_weights(
    spark: SparkSession, store_uri: str, tmp_path: Path
) -> None:
    data, path = spark.range(3).selectExpr("id", "double(id) AS x"), str(tmp_path / "saved")
    untrained(store_uri, [NUMBER], 1.0, "first").save(path)
    assert scores(TorchModel.load(path).transform(data)) == {0: 0.0, 1: 1.0, 2: 2.0}
    untrained(store_uri, [NUMBER], 5.0, "second").write().overwrite().save(path)
    second = TorchModel.load(path)
    untrained(store_uri, [NUMBER], 7.0, "third").write().overwrite().save(path)
    assert scores(TorchModel.load(path).transform(data)) == {0: 0.0, 1: 7.0, 2: 14.0}
    # No worker has seen the second weights, and the third must not be taken for them.
    with pytest.raises(Exception, match="CheckpointError: another model was saved here.*Hint"):
        second.transform(data).collect()
    with pytest.raises(CheckpointError, match="another model was saved here.*Hint"):
        second.module()


def test_a_deleted_run_is_named(spark: SparkSession, store_uri: str) -> None:
    model = untrained(store_uri, [NUMBER])
    plan = model.transform(spark.range(3).selectExpr("id", "double(id) AS x"))
    Store(store_uri).delete("m")
    with pytest.raises(Exception, match=r"is gone.*/store/m.*Hint.*model.save\(path\) makes a copy"):
        plan.collect()
    with pytest.raises(CheckpointError, match="is gone"):
        model.module()


# column, its second row, whether it is a vector, whether "keep" scores it
INVALID = [
    (NUMBER, "CAST(NULL AS double)", False, True),
    (VECTOR, "CAST(NULL AS array<double>)", True, False),
    (VECTOR, "CAST(array(1, double('NaN')) AS array<double>)", True, True),
    (VECTOR, "CAST(array(1, NULL) AS array<double>)", False, True),
    (IDS, f"CAST(array({BIG}L, NULL) AS array<bigint>)", False, False),
]


@pytest.mark.parametrize(("column", "second", "vector", "kept"), INVALID)
def test_handle_invalid(
    spark: SparkSession, store_uri: str, column: ColumnSpec, second: str, vector: bool, kept: bool
) -> None:
    model, data = untrained(store_uri, [column]), with_x(spark, second, vector=vector)
    first = float(BIG % 1000) if column is IDS else 3.0
    with pytest.raises(Exception, match="DataError: null.*in feature column 'x'.*Hint.*handleInvalid"):
        model.transform(data).collect()
    skipping = model.copy().setHandleInvalid("skip").transform(data)
    assert scores(skipping) == {0: first}
    keeping = model.copy().setHandleInvalid("keep").transform(data)
    if kept:  # the module gets NaN, and what it makes of it is no null
        found = scores(keeping)
        assert found[0] == first
        assert math.isnan(found[1])
    else:
        with pytest.raises(Exception, match="DataError: null in feature column 'x'.*Hint.*'skip'"):
            keeping.collect()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.scale * x, x.nan_to_num(7.0)], dim=1)


def test_nan_in_a_vector_of_scores_stays_nan(spark: SparkSession, store_uri: str) -> None:
    model = as_fitted(Twice(), [NUMBER], store_uri, width=2).setHandleInvalid("keep")
    found = scores(model.transform(with_x(spark, "CAST(NULL AS double)")))
    assert list(found[0]) == [3.0, 3.0]
    assert math.isnan(found[1][0])
    assert found[1][1] == 7.0


def test_what_is_invalid_in_fit_and_transform(spark: SparkSession) -> None:
    cases = [
        ("float", "float32", [("1", False), ("NULL", True), ("float('NaN')", True), ("float('inf')", False)]),
        ("bigint", "int64", [("1", False), ("NULL", True)]),
        ("array<float>", "float32", [("array(1, 2)", False), ("array()", False), ("NULL", True)]),
        ("array<float>", "float32", [("array(NULL, 1)", True), ("array(1, float('NaN'))", True)]),
        ("array<bigint>", "int64", [("array(1)", False), ("array()", False), ("array(1, NULL)", True), ("NULL", True)]),
    ]
    expected = [invalid for _, _, values in cases for _, invalid in values]
    flat = [(f"CAST({value} AS {kind})", kind, dtype) for kind, dtype, values in cases for value, _ in values]
    conditions = [
        is_invalid(F.expr(sql), dtype, kind.startswith("array")).alias(f"c{k}")
        for k, (sql, kind, dtype) in enumerate(flat)
    ]
    assert list(spark.range(1).select(*conditions).head() or []) == expected


@pytest.mark.parametrize(
    ("column", "expression", "message"),
    [
        (NUMBER, "CAST(id AS string)", "column type cannot be used: 'string'.*Hint.*StringIndexer"),
        (VECTOR, "array(CAST(id AS string))", "column type cannot be used: 'array<string>'.*Hint"),
        (NUMBER, "array(1.0)", r"trained with a number here: 'array<decimal\(2,1\)>'"),
        (VECTOR, "1.0", "trained with an array or vector here"),
    ],
)
def test_other_types_than_trained_are_refused(
    spark: SparkSession, store_uri: str, column: ColumnSpec, expression: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        untrained(store_uri, [column]).transform(spark.range(2).selectExpr("id", f"{expression} AS x"))


# Of a model of integers or numbers: type in training, what is scored, and as what, or the words of the error.
SCORED_AS = [
    (ID, "bigint", "7.0D", 7.0),
    (ID, "bigint", "CAST(7 AS decimal(20,0))", 7.0),
    (ID, "bigint", "true", 1.0),
    (ID, "int", "7.5D", "trained on int in column 'x', and a double is no integer.*Hint"),
    (ID, "int", "9007199254740993D", "so large that it may once have been another"),
    (ID, "int", "double('NaN')", "null in feature column 'x'"),
    (ID, "int", "'7'", "trained on int here: 'string'.*'x'.*Hint: cast it to int"),
    (ID, "int", "current_date()", "trained on int here: 'date'.*'x'"),
    (IDS, "array<bigint>", "array(7.0D, 7.0D)", 14.0),
    (IDS, "array<bigint>", "array_to_vector(array(16777217D, 0D))", 217.0),
    (IDS, "array<bigint>", "array(7.5F)", "a float is no integer"),
    (NUMBER, "double", "7BD", 7.0),
    (NUMBER, "boolean", "'true'", "trained on boolean here: 'string'.*Hint: cast it to boolean"),
    (VECTOR, "vector", "array(7, 7)", 14.0),
    (VECTOR, "vector", "array('7', '7')", "trained on vector here: 'array<string>'"),
    (VECTOR, "array<int>", "array_to_vector(array(7D, 7D))", 14.0),
]


@pytest.mark.parametrize(("column", "trained", "expression", "expected"), SCORED_AS)
def test_what_was_trained_on_is_scored_in_every_type_that_holds_it(
    spark: SparkSession, store_uri: str, column: ColumnSpec, trained: str, expression: str, expected: float | str
) -> None:
    model = untrained(store_uri, [column])
    model._fitted = replace(model._state, types={"x": trained})
    inner = expression.removeprefix("array_to_vector(")
    data = spark.range(1).selectExpr("id", f"{inner.removesuffix(')') if inner != expression else inner} AS x")
    if inner != expression:
        data = data.withColumn("x", array_to_vector("x"))
    if isinstance(expected, str):
        with pytest.raises(Exception, match=expected):
            model.transform(data).collect()
    else:
        assert scores(model.transform(data)) == {0: expected}


def _through_a_view(frame: DataFrame) -> DataFrame:
    frame.createOrReplaceTempView("scored")
    return frame.sparkSession.sql("SELECT x, prediction AS p, prediction * 2 AS q FROM scored WHERE prediction > 1")


ABOVE = {
    "nothing": lambda frame: frame,
    "a filter": lambda frame: frame.where("prediction > 1"),
    "filters and arithmetic": lambda frame: frame.where("prediction > 1").selectExpr("prediction + prediction AS p"),
    "a view": _through_a_view,
    "an order": lambda frame: frame.where("prediction < 9").orderBy("prediction"),
    "a group": lambda frame: frame.where("prediction < 9").groupBy("prediction").count(),
    "a join": lambda frame: frame.where("prediction > 1").join(frame.sparkSession.range(9), F.expr("id = prediction")),
}


@pytest.mark.parametrize("above", ABOVE)
def test_each_row_is_scored_once_whatever_stands_above(spark: SparkSession, store_uri: str, above: str) -> None:
    data = spark.range(50).selectExpr("cast(id AS float) AS x")
    scored = untrained(store_uri, [ColumnSpec("x", "float32", "scalar")]).transform(data)
    plan = ABOVE[above](scored)._jdf.queryExecution().executedPlan().toString()
    assert plan.count("ArrowEvalPython") == 1, plan
