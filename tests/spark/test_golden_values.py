"""The plan of Spark makes of raw columns what `embedding.ids.categories` and `artifact.inputs` make of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from pyspark.sql import DataFrame, SparkSession

from hvdspark.estimators.categories import category_key
from hvdspark.estimators.continuous import number
from tests.golden import ID_BITS, Case, cases

pytestmark = pytest.mark.spark


def frame(spark: SparkSession, given: Sequence[Case]) -> DataFrame:
    """A column for each case, `c0`, `c1`, ...; shorter ones end with nulls."""
    rows = itertools.zip_longest(*(case.values for case in given))
    return spark.createDataFrame(list(rows), ", ".join(f"c{k} {case.type}" for k, case in enumerate(given))).coalesce(1)


def test_categories(spark: SparkSession) -> None:
    given = cases("categories")
    data = frame(spark, given)
    keys = [
        category_key(data, f"c{k}", ID_BITS, handle_invalid, case.trained)
        for handle_invalid in ("keep", "error")
        for k, case in enumerate(given)
    ]
    found = [list(column) for column in zip(*data.select(*keys).collect(), strict=True)]
    for case, kept, refused in zip(given, found[: len(given)], found[len(given) :], strict=True):
        size = len(case.values)
        assert kept[:size] == case.expected, str(case)
        same = [one == other for one, other in zip(refused[:size], case.expected, strict=True)]
        gaps = [any(gap in str(value) for gap in ("None", "nan", "inf")) for value in case.values]
        assert same == [not gap for gap in gaps], str(case)


def test_numbers(spark: SparkSession) -> None:
    given = cases("numbers")
    rows = frame(spark, given).select(*(number(f"c{k}") for k in range(len(given)))).collect()
    for case, column in zip(given, zip(*rows, strict=True), strict=True):
        assert list(map(repr, column[: len(case.values)])) == list(map(repr, case.expected)), str(case)
