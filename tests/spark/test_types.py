"""Columns whose type is another one at scoring than in training: the same values, or refused by name."""

from __future__ import annotations

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from hvdspark.errors import SchemaError
from hvdspark.estimators.categories import category_key, check_categories
from hvdspark.estimators.continuous import check_numbers, number

pytestmark = pytest.mark.spark


@pytest.mark.parametrize("kind", ["tinyint", "smallint", "bigint", "float", "double", "decimal(20,0)", "decimal(20,2)"])
@pytest.mark.parametrize("handle_invalid", ["skip", "keep"])
def test_an_id_is_the_same_category_in_every_type_that_holds_it(
    spark: SparkSession, kind: str, handle_invalid: str
) -> None:
    ids = spark.createDataFrame([(0,), (7,), (-3,), (None,)], "id int")
    both = ids.select("id", F.col("id").cast(kind).alias("other"), F.array(F.col("id").cast(kind)).alias("several"))
    check_categories(both.schema, ["other", "several"], trained={})
    keys = [category_key(both, name, 52, handle_invalid) for name in ("id", "other", "several")]
    for one, other, several in both.select(*keys).collect():
        assert one == other == several[0]
    halves = spark.sql("SELECT CAST(1.5 AS DOUBLE) AS id, double('NaN') AS gap, CAST(1e300 AS DOUBLE) AS large")
    found = halves.select(*(category_key(halves, name, 52, "skip") for name in halves.columns)).first()
    assert found is not None
    assert found[0] is not None
    assert found[1] is None


# In training, at scoring, whether it is the same category.
CATEGORIES = [
    ("7", "7L", True),
    ("7", "7.0D", True),
    ("7", "CAST(7 AS float)", True),
    ("7", "CAST(7 AS decimal(20,0))", True),
    ("7", "7.00BD", True),
    ("7", "'7'", True),
    ("7", "' 007.0'", True),
    ("-7", "'-7'", True),
    ("7", "7.5D", False),
    ("7", "7.5BD", False),
    ("7", "'7.5'", False),
    ("7", "'seven'", False),
    ("7", "''", False),
    ("1", "true", True),
    ("0", "false", True),
    ("9007199254740993L", "CAST('9007199254740993' AS decimal(20,0))", True),
    ("9223372036854775807L", "CAST('9223372036854775807' AS decimal(22,2))", True),
    ("9007199254740992L", "9007199254740993L", False),
    ("9007199254740992L", "CAST(9007199254740993L AS double)", False),  # which of the two it was, nobody knows
    ("16777216", "CAST(16777217 AS float)", False),
    ("7", "CAST('18446744073709551615' AS decimal(20,0))", False),
    ("true", "1", True),
    ("true", "1.0D", True),
    ("false", "'False'", True),
    ("true", "2", False),
    ("'7'", "CAST('7' AS varchar(3))", True),
    ("'007'", "'7'", False),
    ("array(7, 8)", "array(7.0D, 8.0D)", True),
    ("array(7, 8)", "array('7', '08')", True),
    ("array('a')", "array('a')", True),
    ("7", "double('NaN')", False),
    ("CAST(NULL AS int)", "double('NaN')", True),
    ("CAST(NULL AS int)", "float('inf')", True),
    ("CAST(NULL AS int)", "CAST(NULL AS string)", True),
    ("CAST(NULL AS string)", "''", False),
]


@pytest.mark.parametrize("handle_invalid", ["skip", "keep"])
def test_the_same_value_is_the_same_category_in_any_type(spark: SparkSession, handle_invalid: str) -> None:
    pairs = [f"{sql} AS {when}{k}" for k, pair in enumerate(CATEGORIES) for when, sql in zip("tn", pair, strict=False)]
    data = spark.range(1).selectExpr(*pairs)
    trained = {f"n{k}": data.schema[f"t{k}"].dataType.simpleString() for k in range(len(CATEGORIES))}
    check_categories(data.schema, list(trained), trained)
    keys = [category_key(data, f"t{k}", 52, handle_invalid) for k in range(len(CATEGORIES))]
    keys += [category_key(data, name, 52, handle_invalid, was) for name, was in trained.items()]
    found = list(data.select(*keys).head() or [])
    same = [one == other for one, other in zip(found[: len(trained)], found[len(trained) :], strict=True)]
    assert {case[:2]: equal for case, equal in zip(CATEGORIES, same, strict=True)} == {
        case[:2]: case[2] for case in CATEGORIES
    }


NUMBERS = ["tinyint", "int", "bigint", "boolean", "float", "double", "decimal(20,0)", "decimal(5,2)"]


def test_a_number_is_the_same_in_every_type_that_holds_it(spark: SparkSession) -> None:
    data = spark.range(1).select(*(F.lit(1).cast(kind).alias(kind) for kind in NUMBERS))
    check_numbers(data.schema, NUMBERS, dict.fromkeys(NUMBERS, "double"))
    assert list(data.select(*map(number, NUMBERS)).head() or []) == [1.0] * len(NUMBERS)


# What fit refuses, and what its hint says to do instead.
CURES = [
    (check_categories, "current_date()", "cast it to string", "CAST(x AS string)"),
    (check_categories, "current_date()", "dayofweek", "dayofweek(x)"),
    (check_categories, "current_timestamp()", "hour", "hour(x)"),
    (check_categories, "localtimestamp()", "hour", "hour(x)"),
    (check_categories, "X'ff'", "hex", "hex(x)"),
    (check_categories, "1.0D", "bigint", "CAST(x AS bigint)"),
    (check_numbers, "current_date()", "unix_date", "unix_date(x)"),
    (check_numbers, "current_timestamp()", "cast it to double", "CAST(x AS double)"),
    (check_numbers, "localtimestamp()", "hour", "hour(x)"),
    (check_numbers, "'7'", "cast it to double", "CAST(x AS double)"),
    (check_numbers, "array(1)", "take its elements", "x[0]"),
]


@pytest.mark.parametrize(("check", "sql", "hint", "cure"), CURES)
def test_what_fit_refuses_has_a_hint_that_cures_it(
    spark: SparkSession, check: type[check_numbers], sql: str, hint: str, cure: str
) -> None:
    data = spark.range(1).selectExpr(f"{sql} AS x")
    with pytest.raises(SchemaError, match=f"'x'.*Hint.*{hint}"):
        check(data.schema, ["x"])
    check(data.selectExpr(f"{cure} AS x").schema, ["x"])


def test_seconds_of_a_timestamp_do_not_depend_on_the_time_zone(spark: SparkSession) -> None:
    zone = spark.conf.get("spark.sql.session.timeZone")
    try:
        found = []
        for other in ("Asia/Tokyo", "UTC"):
            spark.conf.set("spark.sql.session.timeZone", other)
            found.append(spark.sql("SELECT CAST(TIMESTAMP '2026-11-27 00:00:00Z' AS double) AS x").head())
        assert found[0] == found[1]
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)
