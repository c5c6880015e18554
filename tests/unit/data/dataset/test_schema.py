"""Which columns are accepted, as what, and how the others are refused."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import pytest

from hvdspark.data.dataset.schema import SourceColumn, check_columns, types_of_named
from hvdspark.errors import ConfigurationError, SchemaError
from hvdspark.specs import ColumnSpec

CENSUS = [("Age", "int"), ("capital_gain", "double"), ("words", "array<bigint>"), ("label", "boolean"), ("w", "float")]


@pytest.mark.parametrize(
    ("spark_type", "dtype", "written"),
    [
        ("boolean", "float32", "float"),
        ("float", "float32", "float"),
        ("double", "float32", "float"),
        ("decimal(10,2)", "float32", "float"),
        ("tinyint", "int64", "bigint"),
        ("smallint", "int64", "bigint"),
        ("int", "int64", "bigint"),
        ("bigint", "int64", "bigint"),
        ("array<double>", "float32", "array<float>"),
        ("array<decimal(38,18)>", "float32", "array<float>"),
        ("array<smallint>", "int64", "array<bigint>"),
        ("array<boolean>", "float32", "array<float>"),
    ],
)
@pytest.mark.parametrize("role", ["feature", "label"])
def test_types(spark_type: str, dtype: str, written: str, role: str) -> None:
    names = {"feature": (["x"], ["other"]), "label": (["other"], ["x"])}[role]
    columns = check_columns([("x", spark_type), ("other", "int")], *names)
    (column,) = [column for column in columns if column.name == "x"]
    assert column == SourceColumn("x", role, dtype, spark_type.startswith("array"))
    assert column.spark_type == written


def test_order_is_features_labels_weight() -> None:
    columns = check_columns(CENSUS, ["words", "Age"], ["label"], weight="w", fixed=["words"])
    assert [(column.name, column.role) for column in columns] == [
        ("words", "feature"),
        ("Age", "feature"),
        ("label", "label"),
        ("w", "weight"),
    ]
    assert [column.must_be_fixed for column in columns] == [True, False, False, False]


def test_layout_of_arrays_follows_the_lengths_seen() -> None:
    array = SourceColumn("a", "feature", "int64", True)
    assert array.spec((3, 3)) == ColumnSpec("a", "int64", "fixed", 3)
    assert array.spec((0, 3)) == ColumnSpec("a", "int64", "ragged")
    assert array.spec((0, 0)) == ColumnSpec("a", "int64", "ragged"), "a tensor of width 0 is of no use"
    assert array.spec(None) == ColumnSpec("a", "int64", "ragged")
    assert SourceColumn("a", "feature", "float32", False).spec(None) == ColumnSpec("a", "float32", "scalar")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("age", "did you mean 'Age'"),
        ("capitalgain", "did you mean 'capital_gain'"),
        ("zzz", "Age, capital_gain, words"),
    ],
)
def test_a_missing_column_names_what_is_close(name: str, hint: str) -> None:
    with pytest.raises(SchemaError, match=hint) as missing:
        check_columns(CENSUS, [name], ["label"])
    assert "feature columns" in str(missing.value)


@pytest.mark.parametrize(
    ("spark_type", "hint"),
    [
        ("string", "StringIndexer"),
        ("varchar(10)", "xxhash64"),
        ("vector", "vector_to_array"),
        ("timestamp", "unix_timestamp"),
        ("timestamp_ntz", "unix_timestamp"),
        ("interval day to second", "unix_timestamp"),
        ("date", "dayofweek"),
        ("map<string,int>", "columns of their own"),
        ("struct<a:int>", "select"),
        ("binary", "decode"),
        ("void", "null"),
        ("variant", "use numbers"),
        ("array<string>", "StringIndexer"),
        ("array<struct<a:int>>", "select"),
        ("array<array<int>>", "flatten"),
    ],
)
def test_a_wrong_type_says_what_to_do(spark_type: str, hint: str) -> None:
    with pytest.raises(SchemaError, match=hint) as wrong:
        check_columns([("x", spark_type), ("y", "int")], ["x"], ["y"])
    assert spark_type in str(wrong.value)
    assert "column 'x'" in str(wrong.value)


def test_weight_is_a_float_whatever_number_it_was() -> None:
    for spark_type in ("float", "double", "int", "bigint", "decimal(3,1)"):
        columns = check_columns([("x", "int"), ("y", "int"), ("w", spark_type)], ["x"], ["y"], weight="w")
        assert columns[2] == SourceColumn("w", "weight", "float32", False)


def test_weight_must_be_a_number() -> None:
    for spark_type in ("boolean", "array<float>", "string"):
        with pytest.raises(SchemaError, match="column 'w'"):
            check_columns([("x", "int"), ("y", "int"), ("w", spark_type)], ["x"], ["y"], weight="w")


def test_validation_must_be_boolean_and_there() -> None:
    schema = [("x", "int"), ("y", "int"), ("v", "int")]
    with pytest.raises(SchemaError, match="must be boolean: 'int'"):
        check_columns(schema, ["x"], ["y"], validation="v")
    with pytest.raises(SchemaError, match="validation_column"):
        check_columns(schema, ["x"], ["y"], validation="vv")


@pytest.mark.parametrize(
    "wanted",
    [
        {"features": ["Age", "Age"], "labels": ["label"]},
        {"features": ["Age"], "labels": ["label", "label"]},
        {"features": ["Age", "label"], "labels": [], "validation": "label"},
    ],
)
def test_one_name_is_given_once_in_a_role(wanted: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="named twice"):
        check_columns(CENSUS, **wanted)


def test_a_column_may_have_several_roles() -> None:
    schema = [("x", "array<double>"), ("n", "int"), ("w", "double")]
    columns = check_columns(schema, ["x", "n"], ["x", "n"], weight="n", fixed=["x"])
    assert columns == (
        SourceColumn("x", "feature", "float32", True, True, ("label",)),
        SourceColumn("n", "feature", "int64", False, False, ("label", "weight")),
    )
    assert [part.role for part in columns[1].by_role()] == ["feature", "label", "weight"]
    with pytest.raises(SchemaError, match="a weight must be a number"):
        check_columns(schema, ["x"], ["n"], weight="x")


@pytest.mark.parametrize(("labels", "weight", "hint"), [(["x"], None, "StringIndexer"), (["y"], "x", "cast it")])
def test_a_label_or_weight_of_text_is_no_id(labels: list[str], weight: str | None, hint: str) -> None:
    with pytest.raises(SchemaError, match=hint) as wrong:
        check_columns([("x", "string"), ("y", "int")], ["y"], labels, weight=weight)
    assert "xxhash64" not in str(wrong.value)


@pytest.mark.parametrize(
    ("spark_type", "refused"),
    [
        ("string collate UNICODE_CI", False),
        ("double", False),
        ("struct<map:int,b:array<date>>", False),
        ("map<int,int>", True),
        ("array<struct<a:map<string,int>>>", True),
        ("variant", True),
    ],
)
def test_groups_are_of_types_that_spark_can_compare(spark_type: str, refused: bool) -> None:
    schema = [("x", "int"), ("y", "int"), ("g", spark_type)]
    with pytest.raises(SchemaError, match="'g' .group_column.*Hint: make") if refused else nullcontext():
        check_columns(schema, ["x"], ["y"], group="g")


def test_other_refusals() -> None:
    with pytest.raises(ConfigurationError, match="feature_columns"):
        check_columns(CENSUS, [], ["label"])
    with pytest.raises(ConfigurationError, match="Age"):
        check_columns(CENSUS, ["Age"], ["label"], fixed=["Age"])
    with pytest.raises(SchemaError, match="ambiguous"):
        check_columns([("x", "int"), ("x", "int")], ["x"], [])
    with pytest.raises(SchemaError, match="must not start"):
        check_columns([("hvdspark_split", "int")], ["hvdspark_split"], [])


def test_takes_a_struct_type_without_a_session() -> None:
    from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StructField, StructType

    schema = StructType([StructField("a", ArrayType(DoubleType())), StructField("b", IntegerType())])
    columns = check_columns(schema, ["a"], ["b"])
    assert [column.spark_type for column in columns] == ["array<float>", "bigint"]


def test_importing_the_module_does_not_import_pyspark() -> None:
    import subprocess

    code = "import sys, hvdspark.data.dataset.schema, hvdspark.data.feed.plan; sys.exit('pyspark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_types_of_columns_that_are_there_whatever_they_are() -> None:
    schema = [("m", "map<string,int>"), ("s", "string"), ("twice", "int"), ("twice", "int")]
    assert types_of_named(schema, ["s", "m"], "categoricalCols") == {"s": "string", "m": "map<string,int>"}
    assert types_of_named(schema, [], "categoricalCols") == {}
    with pytest.raises(SchemaError, match="column not found: 'S' .in categoricalCols.*did you mean 's'"):
        types_of_named(schema, ["S"], "categoricalCols")
    with pytest.raises(SchemaError, match="ambiguous: 'twice' .in categoricalCols"):
        types_of_named(schema, ["s", "twice"], "categoricalCols")
