"""Writing datasets: splits, invalid rows, what is shared, what is deleted."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hvdspark.data.dataset import footers
from hvdspark.errors import ConfigurationError, DataError, SchemaError, StoreError
from hvdspark.specs import ColumnSpec, RowGroups
from hvdspark.store import Store
from tests.spark.datasets import rows_of, written

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

NAN = float("nan")


def test_types_and_layouts(spark: SparkSession, store: Store) -> None:
    df = spark.createDataFrame(
        [
            (True, 1, 2, 1 << 62, Decimal("1.5"), [0.5, 1.5], [1], 1),
            (False, -1, 3, 4, Decimal("2.5"), [2.5, 3.5], [1, 2], 0),
        ],
        "a boolean, b tinyint, `c.d e` int, id bigint, f decimal(5,1), v array<double>, r array<int>, y int",
    )
    with written(df, store, ["r", "a", "b", "c.d e", "id", "f", "v"], fixed=["v"]) as dataset:
        assert dataset.columns == (
            ColumnSpec("r", "int64", "ragged"),
            ColumnSpec("a", "float32", "scalar"),
            ColumnSpec("b", "int64", "scalar"),
            ColumnSpec("c.d e", "int64", "scalar"),
            ColumnSpec("id", "int64", "scalar"),
            ColumnSpec("f", "float32", "scalar"),
            ColumnSpec("v", "float32", "fixed", 2),
            ColumnSpec("y", "int64", "scalar"),
        )
        assert dataset.train_rows == 2
        assert len(dataset.validation) == 0
        assert rows_of(store, dataset) == [
            ([1, 2], 0.0, -1, 3, 4, 2.5, [2.5, 3.5], 0),
            ([1], 1.0, 1, 2, 1 << 62, 1.5, [0.5, 1.5], 1),
        ]


def test_boolean_validation_column(spark: SparkSession, store: Store) -> None:
    df = spark.range(100).selectExpr("id AS x", "id AS y", "id < 30 AS v")
    with written(df, store, ["x"], validation="v") as dataset:
        assert rows_of(store, dataset, "validation") == sorted(((i, i) for i in range(30)), key=repr)
        assert rows_of(store, dataset, "train") == sorted(((i, i) for i in range(30, 100)), key=repr)


def test_the_share_of_validation_is_drawn_by_row_from_the_seed(spark: SparkSession, store: Store) -> None:
    df = spark.range(2000, numPartitions=3).selectExpr("id AS x", "rand(1) AS z", "id % 2 AS y")
    splits, paths = [], []
    for frame, seed in ((df, 1), (df, 1), (df, 2)):
        with written(frame, store, ["x", "z"], validation=0.25, seed=seed) as dataset:
            assert dataset.train_rows + dataset.validation_rows == 2000
            assert 400 < dataset.validation_rows < 600
            splits.append(rows_of(store, dataset, "validation"))
            paths.append(dataset.path)
    assert paths[0] == paths[1] != paths[2]
    assert splits[0] != splits[2]
    numbers = [row[1] for row in splits[0]]
    assert max(numbers) > 0.9, "a column rand(seed) of the user's is another draw"


@pytest.mark.parametrize("seed", range(3))
def test_a_few_kinds_of_rows_are_on_both_sides_in_the_share_asked_for(
    spark: SparkSession, store: Store, seed: int
) -> None:
    df = spark.range(20_000, numPartitions=2).selectExpr("id % 12 AS x", "0 AS y")
    with written(df, store, ["x"], validation=0.2, seed=seed) as dataset:
        # Six standard deviations of a binomial draw: 57 rows each.
        assert abs(dataset.validation_rows - 4000) < 6 * 57
        assert dataset.train_rows + dataset.validation_rows == 20_000
        assert set(rows_of(store, dataset, "train")) == set(rows_of(store, dataset, "validation"))


def test_a_group_stays_on_one_side(spark: SparkSession, store: Store) -> None:
    user = "if(id % 50 = 0, null, concat('user ', id % 200)) AS user"
    df = spark.range(4000, numPartitions=3).selectExpr("id % 200 AS x", "id % 2 AS y", user)
    sides = []
    for frame in (df, df.repartition(5)):
        with written(frame, store, ["x"], validation=0.3, group="user") as dataset:
            sides.append(rows_of(store, dataset, "validation"))
            training = {row[0] for row in rows_of(store, dataset, "train")}
            assert dataset.train_rows + dataset.validation_rows == 4000
            assert 0.15 < dataset.validation_rows / 4000 < 0.45
            without_user = {x for x in range(200) if x % 50 == 0}
            assert not (training - without_user) & ({row[0] for row in sides[-1]} - without_user)
            assert without_user <= training or not (without_user & training), "null is a group, too"
    assert sides[0] == sides[1], "whatever the partitions"


@pytest.mark.parametrize(
    ("error", "says", "options"),
    [
        (SchemaError, "did you mean 'user'", {"group": "usr", "validation": 0.5}),
        (ConfigurationError, "validation_share", {"group": "user", "validation": None}),
        (ConfigurationError, "validation_share", {"group": "user", "validation": "v"}),
    ],
)
def test_a_group_column_that_cannot_be_used(
    spark: SparkSession, store: Store, error: type[Exception], says: str, options: Any
) -> None:
    df = spark.range(5).selectExpr("id AS x", "id AS y", "id AS user", "id > 2 AS v")
    with pytest.raises(error, match=says), written(df, store, ["x"], **options):
        pass


INVALID = [
    ("x double, y int", [(1.0, 0), (None, 1), (None, 0)], "nulls in a feature column: 2 (in column 'x')"),
    ("x double, y int", [(1.0, 0), (NAN, 1)], "NaN in a feature column: 1 (in column 'x')"),
    ("x double, y int", [(NAN, 0), (NAN, 1)], "NaN in a feature column: 2 (in column 'x')"),
    ("x bigint, y int", [(None, 0), (2, 1)], "nulls in a feature column: 1 (in column 'x')"),
    ("x array<int>, y int", [([1], 0), (None, 1)], "null arrays in a feature column: 1 (in column 'x')"),
    ("x array<int>, y int", [([1, None], 0), ([], 1)], "null elements in an array column: 1 (in column 'x')"),
    ("x array<float>, y int", [([1.0, NAN], 0), ([], 1)], "NaN elements in an array column: 1 (in column 'x')"),
]


@pytest.mark.parametrize(("schema", "rows", "says"), INVALID)
def test_invalid_features_are_errors(spark: SparkSession, store: Store, schema: str, rows: Any, says: str) -> None:
    df = spark.createDataFrame(rows, schema).coalesce(1)
    with pytest.raises(DataError) as refused, written(df, store, ["x"]):
        pass
    assert says in str(refused.value)
    assert "Hint: " in str(refused.value)
    assert store.list("datasets") == [], "nothing half-written is left, while the DataFrame is alive"


def test_skip_drops_and_counts(spark: SparkSession, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    df = spark.createDataFrame(
        [
            (1.0, 1, [1.0], 0),
            (None, 2, [1.0], 1),
            (NAN, 3, [1.0], 1),
            (1.0, None, [1.0], 1),
            (1.0, 5, None, 1),
            (1.0, 6, [1.0, None], 1),
            (1.0, 7, [NAN], 1),
            (2.0, 8, [], 0),
        ],
        "x double, i int, a array<double>, y int",
    )
    with caplog.at_level(logging.WARNING), written(df, store, ["x", "i", "a"], handle_invalid="skip") as dataset:
        assert rows_of(store, dataset) == [(1.0, 1, [1.0], 0), (2.0, 8, [], 0)]
        assert store.list(f"{dataset.path}/data") == ["._SUCCESS.crc", "_SUCCESS", "hvdspark_split=0"]
    assert "dropped 6 of 8 rows" in caplog.text


def test_keep_turns_null_into_nan(spark: SparkSession, store: Store) -> None:
    df = spark.createDataFrame(
        [(None, [None, 1.0], 0), (NAN, [2.0, NAN], 1), (3.0, [4.0, 5.0], 1)], "x double, a array<double>, y int"
    )
    with written(df, store, ["x", "a"], handle_invalid="keep") as dataset:
        kept = [(x, *a) for x, a, _ in rows_of(store, dataset)]
    assert sum(math.isnan(value) for row in kept for value in row) == 4
    assert sum(value for row in kept for value in row if not math.isnan(value)) == 15.0


@pytest.mark.parametrize(
    ("schema", "rows", "says"),
    [
        ("x int, y int", [(None, 0), (1, 1)], "an integer has no NaN"),
        ("x array<int>, y int", [([None], 0), ([1], 1)], "an integer has no NaN"),
        ("x array<float>, y int", [(None, 0), ([1.0], 1)], "null arrays"),
    ],
)
def test_keep_cannot_keep_everything(spark: SparkSession, store: Store, schema: str, rows: Any, says: str) -> None:
    df = spark.createDataFrame(rows, schema)
    with pytest.raises(DataError, match=says), written(df, store, ["x"], handle_invalid="keep"):
        pass


@pytest.mark.parametrize(
    ("row", "handle_invalid", "says"),
    [
        ((1, None, 1.0), "error", "nulls in a label column: 1"),
        ((1, None, 1.0), "skip", "nulls in a label column: 1"),
        ((1, NAN, 1.0), "keep", "NaN in a label column: 1"),
        ((1, math.inf, 1.0), "error", "infinite values in a label column"),
        ((1, 1.0, None), "keep", "nulls in a weight column: 1"),
        ((1, 1.0, NAN), "skip", "NaN in a weight column: 1"),
        ((1, 1.0, -0.5), "error", "negative weights"),
    ],
)
def test_labels_and_weights_are_always_checked(
    spark: SparkSession, store: Store, row: Any, handle_invalid: str, says: str
) -> None:
    df = spark.createDataFrame([(2, 2.0, 2.0), row, (3, 3.0, 3.0)], "x int, y double, w double").coalesce(1)
    with pytest.raises(DataError, match=says), written(df, store, ["x"], weight="w", handle_invalid=handle_invalid):
        pass


@pytest.mark.parametrize(
    ("sql", "options", "says"),
    [
        ("SELECT id AS x, id AS y FROM range(0, 5, 1, 1) WHERE id > 9", {}, "the DataFrame is empty"),
        ("SELECT id AS x, id AS y FROM range(0, 5, 1, 1) WHERE id > 9", {"validation": 0.5}, "the DataFrame is empty"),
        (
            "SELECT id AS x, id AS y, true AS v FROM range(0, 5, 1, 1)",
            {"validation": "v"},
            "all 5 rows are validation rows",
        ),
        ("SELECT id AS x, id AS y, false AS v FROM range(0, 5, 1, 1)", {"validation": "v"}, "no rows to validate on"),
        (
            "SELECT id AS x, id AS y, if(id = 1, null, true) AS v FROM range(0, 5, 1, 1)",
            {"validation": "v"},
            "validation column: 1",
        ),
        ("SELECT double(null) AS x, id AS y FROM range(0, 5, 1, 1)", {"handle_invalid": "skip"}, "dropped all 5 rows"),
        ("SELECT id AS x, id AS y, 0 AS w FROM range(0, 5, 1, 1)", {"weight": "w"}, "all weights are 0"),
        ("SELECT array_repeat(1, int(id)) AS x, id AS y FROM range(0, 5, 1, 1)", {"fixed": ["x"]}, "0 to 4 elements"),
        (
            "SELECT array_repeat(1, 0) AS x, id AS y FROM range(0, 5, 1, 1)",
            {"fixed": ["x"]},
            "vectors without elements",
        ),
    ],
)
def test_rows_that_cannot_be_used(spark: SparkSession, store: Store, sql: str, options: Any, says: str) -> None:
    df = spark.sql(sql)
    with pytest.raises(DataError) as refused, written(df, store, ["x"], **options):
        pass
    assert says in str(refused.value)
    assert store.list("datasets") == []


def test_bad_arguments_start_no_job(spark: SparkSession, store: Store) -> None:
    df = spark.range(5).selectExpr("id AS x", "id AS y", "int(raise_error('a job ran')) AS z")
    for error, options in (
        (ConfigurationError, {"handle_invalid": "ignore"}),
        (ConfigurationError, {"validation": 1.0}),
        (ConfigurationError, {"validation": 0.0}),
        (ConfigurationError, {"validation": "x"}),
        (SchemaError, {"validation": "z"}),
        (SchemaError, {"labels": ["yy"]}),
    ):
        with pytest.raises(error), written(df, store, ["x"], **options):  # type: ignore[arg-type]
            pass
    assert not store.exists()


def test_an_unwritable_store_is_named_before_any_job(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    df = spark.range(5).selectExpr("id AS x", "int(raise_error('a job ran')) AS y")
    with pytest.raises(StoreError, match="file/store"), written(df, Store(str(tmp_path / "file/store")), ["x"]):
        pass


def test_executors_that_write_somewhere_else_are_found_out(spark: SparkSession, store: Store, tmp_path: Path) -> None:
    class Unshared(Store):
        def spark_uri(self, path: str = "") -> str:
            return Store(str(tmp_path / "other host")).spark_uri(path)

    df = spark.range(5).selectExpr("id AS x", "id AS y")
    with pytest.raises(StoreError, match="cannot see it"), written(df, Unshared(store.uri), ["x"]):
        pass


def test_a_job_that_dies_leaves_nothing(spark: SparkSession, store: Store) -> None:
    df = spark.range(5000, numPartitions=4).selectExpr("id AS x", "if(id = 4999, int(raise_error('boom')), 1) AS y")
    with pytest.raises(Exception, match="boom"), written(df, store, ["x"]):
        pass
    assert store.list("datasets") == []


def test_one_giant_partition_becomes_many_row_groups(spark: SparkSession, store: Store) -> None:
    columns = [f"rand({index}) AS f{index}" for index in range(8)]
    df = spark.range(600_000, numPartitions=1).selectExpr("id AS y", *columns)
    with written(df, store, [f"f{index}" for index in range(8)]) as dataset:
        assert len({group.path for group in dataset.train}) == 1
        assert 2 <= len(dataset.train) <= 10
        assert dataset.train_rows == 600_000


def test_rows_that_take_no_room_become_several_row_groups(spark: SparkSession, store: Store) -> None:
    df = spark.range(2_500_000, numPartitions=1).selectExpr("id = 7 AS x", "id = 9 AS y")
    with written(df, store, ["x"]) as dataset:
        assert len(dataset.train) >= 3
        assert max(group.rows for group in dataset.train) <= 1 << 20
        assert dataset.train_rows == 2_500_000


def test_many_footers_are_read_by_the_executors(
    spark: SparkSession, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    df = spark.range(700, numPartitions=7).selectExpr(
        "id / 3 AS x", "array(id, 1) AS a", "id % 2 AS y", "id % 5 = 0 AS v"
    )
    with written(df, store, ["x", "a"], validation="v") as dataset:
        expected = footers.read_footers(store, f"{dataset.path}", ["data/hvdspark_split=0", "data/hvdspark_split=1"])
        monkeypatch.setattr(footers, "_BLOCK_FILES", 3)
        monkeypatch.setattr(footers, "_DRIVER_FILES", 0)
        directories = ["data/hvdspark_split=0", "data/hvdspark_split=1", "missing"]
        found = footers.read_footers(store, f"{dataset.path}", directories, spark)
        assert found.groups == [dataset.train, dataset.validation, RowGroups.of()]
        assert (found.columns, found.row_bytes) == (expected.columns, expected.row_bytes)
        store.write_bytes(f"{dataset.path}/missing/a.parquet", b"PAR1 or not")
        with pytest.raises(StoreError, match=r"missing/a\.parquet"):
            footers.read_footers(store, f"{dataset.path}", directories, spark)


def test_thousands_of_tiny_partitions_become_few_files(spark: SparkSession, store: Store) -> None:
    df = spark.range(1000, numPartitions=1000).selectExpr("id AS x", "id AS y")
    with written(df, store, ["x"]) as dataset:
        assert len(dataset.train) <= 200
        assert dataset.train_rows == 1000
