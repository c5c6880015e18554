"""When the rows of a DataFrame are written again, and when the dataset that is there is shared."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.ml.feature import StringIndexerModel, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from hvdspark.errors import StoreError
from hvdspark.store import Store
from tests.spark.datasets import rows_of, written

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

pytestmark = pytest.mark.spark


def test_the_same_plan_is_written_once(spark: SparkSession, store: Store) -> None:
    df = spark.range(100).selectExpr("id AS x", "id % 2 AS y", "id AS z")
    same = spark.range(100).selectExpr("id AS x", "id % 2 AS y", "id AS z")
    with written(df, store, ["x"]) as first:
        pass
    assert store.list("datasets") == [first.path.split("/")[1]], "it lives as long as its DataFrame"
    files = {path: path.stat().st_mtime_ns for path in store.local_path(first.path).rglob("*.parquet")}  # type: ignore[union-attr]
    for other, options in ((df, {}), (same, {}), (df, {"num_workers": 7}), (df, {"seed": 9})):
        with written(other, store, ["x"], **options) as again:
            assert again == first
    assert files == {path: path.stat().st_mtime_ns for path in store.local_path(first.path).rglob("*.parquet")}  # type: ignore[union-attr]
    for other, features, options in (
        (df, ["z"], {}),
        (df, ["x", "z"], {}),
        (df.where("x > 5"), ["x"], {}),
        (df, ["x"], {"validation": 0.5}),
        (df, ["x"], {"handle_invalid": "skip"}),
    ):
        with written(other, store, features, **options) as different:
            assert different.path != first.path


def test_a_dataset_goes_with_its_last_holder(spark: SparkSession, store: Store) -> None:
    df = spark.range(100).selectExpr("id AS x", "id % 2 AS y")
    with written(df.select("x", "y"), store, ["x"], owner=df) as first:
        pass
    gc.collect()
    assert store.exists(first.path), "held by the user's DataFrame, not by the derived one"
    with written(df, store, ["x"]) as again:
        assert again == first
        del df
        gc.collect()
        assert store.exists(first.path), "held by the fit"
    assert not store.exists(first.path)


def test_threads_share_one_write(spark: SparkSession, store: Store) -> None:
    df = spark.range(20_000).selectExpr("id AS x", "id % 2 AS y")
    together, paths = threading.Barrier(4, timeout=60), []

    def fit() -> None:
        with written(df, store, ["x"]) as dataset:
            together.wait()
            paths.append(dataset.path)
            assert len(store.list("datasets")) == 1

    threads = [threading.Thread(target=fit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1


def test_files_that_changed_are_read_again(spark: SparkSession, store: Store, tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    spark.range(10).selectExpr("id AS x", "id AS y").write.parquet(source)
    before = spark.read.parquet(source)
    with written(before, store, ["x"]) as dataset:
        assert dataset.train_rows == 10
    spark.range(10, 30).selectExpr("id AS x", "id AS y").write.mode("append").parquet(source)
    after = spark.read.parquet(source)
    assert before.sameSemantics(after), "the plan alone does not tell"
    with written(after, store, ["x"]) as dataset:
        assert dataset.train_rows == 30


def _table(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    del folder
    spark.range(10).selectExpr("id AS x", "id AS y", "id % 2 AS p").write.partitionBy("p").saveAsTable("clicks")

    def insert() -> DataFrame:
        spark.range(10, 100).selectExpr("id AS x", "id AS y", "id % 2 AS p").write.insertInto("clicks")
        return spark.table("clicks")

    return spark.table("clicks"), insert


def _plain_table(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    del folder
    spark.range(10).selectExpr("id AS x", "id AS y").write.saveAsTable("clicks")

    def insert() -> DataFrame:
        spark.range(10, 100).selectExpr("id AS x", "id AS y").write.insertInto("clicks")
        return spark.table("clicks")

    return spark.table("clicks"), insert


def _replaced(spark: SparkSession, folder: Path, rows: int) -> None:
    fresh = folder / "fresh"
    spark.range(rows).selectExpr("id AS x", "id AS y").coalesce(1).write.mode("overwrite").parquet(str(fresh))
    target = folder / "source" / "part.parquet"
    target.parent.mkdir(exist_ok=True)
    next(fresh.glob("part-*")).rename(target)  # the same name: an index made before does not notice


def _files(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    _replaced(spark, folder, 10)

    def replace() -> DataFrame:
        _replaced(spark, folder, 100)
        return spark.read.parquet(str(folder / "source"))

    return spark.read.parquet(str(folder / "source")), replace


def _cached(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    df, replace = _files(spark, folder)
    df.cache().count()

    def replace_and_forget() -> DataFrame:
        replace()
        df.unpersist(blocking=True)
        return df.sparkSession.read.parquet(str(folder / "source")).cache()

    return df, replace_and_forget


def _subquery(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    _, replace = _files(spark, folder)

    def frame() -> DataFrame:
        spark.read.parquet(str(folder / "source")).createOrReplaceTempView("source")
        return spark.sql("SELECT id AS x, id AS y FROM range(1000) WHERE id <= (SELECT max(x) FROM source)")

    def replaced() -> DataFrame:
        replace()
        return frame()

    return frame(), replaced


def _ripe(spark: SparkSession, now: str) -> tuple[DataFrame, Callable[[], DataFrame]]:
    """10 rows, and 100 when 3 s have passed."""
    begin = time.time()
    df = spark.range(100).selectExpr("id AS x", "id AS y").where(f"{begin} + if(id < 10, -60, 3) < {now}")

    def wait() -> DataFrame:
        time.sleep(max(0.0, begin + 3.1 - time.time()))
        return df

    return df, wait


def _time(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    del folder
    return _ripe(spark, "unix_micros(now()) / 1e6")


def _reflection(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    del folder
    return _ripe(spark, "bigint(java_method('java.lang.System', 'currentTimeMillis')) / 1e3")


def _limit(folder: Path) -> tuple[Callable[[], int], Callable[[DataFrame], Callable[[], DataFrame]]]:
    """What a function reads that Spark does not know of."""
    file = folder / "limit"
    file.write_text("10")

    def changes(df: DataFrame) -> Callable[[], DataFrame]:
        return lambda: [df, file.write_text("100")][0]  # type: ignore[return-value]

    return lambda: int(file.read_text()), changes


def _udf(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    limit, changes = _limit(folder)
    below = F.udf(lambda x: x < limit(), "boolean").asNondeterministic()
    df = spark.range(100).selectExpr("id AS x", "id AS y").where(below("x"))
    return df, changes(df)


def _map_in_pandas(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    limit, changes = _limit(folder)
    rows = spark.range(100).selectExpr("id AS x", "id AS y")
    df = rows.mapInPandas(lambda parts: (part[part.x < limit()] for part in parts), "x long, y long")
    return df, changes(df)


def _function_of_an_rdd(spark: SparkSession, folder: Path) -> tuple[DataFrame, Callable[[], DataFrame]]:
    limit, changes = _limit(folder)
    rows = spark.sparkContext.parallelize([0], 1).flatMap(lambda _: [(x, x) for x in range(limit())])
    df = spark.createDataFrame(rows, "x long, y long")
    return df, changes(df)


CHANGED = [_table, _plain_table, _files, _cached, _subquery]
CHANGED += [_time, _reflection, _udf, _map_in_pandas, _function_of_an_rdd]


@pytest.mark.parametrize("source", CHANGED, ids=lambda source: source.__name__)
def test_rows_that_changed_are_written_again(
    spark: SparkSession, store: Store, tmp_path: Path, source: Callable[..., Any]
) -> None:
    spark.sql("DROP TABLE IF EXISTS clicks")
    df, change = source(spark, tmp_path)
    with written(df, store, ["x"]) as dataset:
        assert dataset.train_rows == 10
    again = change()
    with written(again, store, ["x"]) as dataset:
        assert dataset.train_rows == 100, "while the first DataFrame lives"
    spark.sql("DROP TABLE IF EXISTS clicks")
    again.unpersist(blocking=True)


def _same_files(spark: SparkSession, folder: Path) -> DataFrame:
    _replaced(spark, folder, 10)
    return spark.read.parquet(str(folder / "source")).where("x >= 0")


def _rows_in_the_plan(spark: SparkSession, folder: Path) -> DataFrame:
    del folder
    return spark.sql("SELECT x, y FROM VALUES (1, 1), (2, 0) AS t(x, y)")


def _rows_of_the_driver_cached(spark: SparkSession, folder: Path) -> DataFrame:
    del folder
    return spark.createDataFrame([(1, 1), (2, 0)], "x int, y int").cache()


def _functions_that_repeat(spark: SparkSession, folder: Path) -> DataFrame:
    twice = F.udf(lambda x: 2 * x, "long")
    df = _same_files(spark, folder).select("x", F.monotonically_increasing_id().alias("n"), twice("y").alias("y"))
    return df.where(F.rand(1) < 0.9).groupBy("x").agg(F.first("y").alias("y"), F.count_if(F.col("n") > 0).alias("n"))


def _same_files_cached(spark: SparkSession, folder: Path) -> DataFrame:
    return _same_files(spark, folder).cache()


SAME = [_same_files, _rows_in_the_plan, _same_files_cached, _rows_of_the_driver_cached, _functions_that_repeat]


@pytest.mark.parametrize("source", SAME, ids=lambda source: source.__name__)
def test_rows_that_provably_did_not_change_are_written_once(
    spark: SparkSession, store: Store, tmp_path: Path, source: Callable[..., Any]
) -> None:
    df = source(spark, tmp_path)
    with written(df, store, ["x"]) as first:
        pass
    with written(df, store, ["x"]) as again:
        assert again == first
    df.unpersist(blocking=True)


def test_stages_that_prepare_the_rows_anew_are_compared_by_what_they_do(spark: SparkSession, store: Store) -> None:
    """As each candidate of a search over a Pipeline does: no function that is called equals another one to Spark."""
    rows = spark.sql("SELECT * FROM VALUES ('a', 1D), ('b', 0D) AS t(name, y)")

    def prepared(*names: str) -> DataFrame:
        indexer = StringIndexerModel.from_labels(list(names), inputCol="name", outputCol="index", handleInvalid="keep")
        assembler = VectorAssembler(inputCols=["index", "y"], outputCol="v")
        return assembler.transform(indexer.transform(rows)).withColumn("x", vector_to_array("v")[0])

    first, same, other = prepared("a", "b"), prepared("a", "b"), prepared("b", "a")
    with written(first, store, ["x"]) as one, written(same, store, ["x"]) as again, written(other, store, ["x"]) as new:
        assert rows_of(store, one) == [(0.0, 1.0), (1.0, 0.0)]
        assert again == one
        assert rows_of(store, new) == [(0.0, 0.0), (1.0, 1.0)]


def test_rows_read_by_an_rdd_are_never_shared(
    spark: SparkSession, store: Store, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "numbers.txt").write_text("1\n2\n3\n")
    lines = spark.sparkContext.textFile(str(tmp_path / "numbers.txt"))
    df = lines.map(lambda line: (int(line), 0)).toDF(["x", "y"])
    with caplog.at_level(logging.INFO, "hvdspark"), written(df, store, ["x"]) as first:
        pass
    assert "HadoopRDD" in caplog.text
    assert store.list("datasets") == []
    with written(df, store, ["x"]) as again:
        assert again.path != first.path


def test_rows_that_this_process_cannot_see_are_an_error(spark: SparkSession, store: Store, tmp_path: Path) -> None:
    """Each host writes to a disk of its own: what lies elsewhere must not be missing in silence."""

    class PartlyElsewhere(Store):
        def list(self, path: str = "") -> list[str]:
            names = super().list(path)
            files = [name for name in names if name.endswith(".parquet")]
            for name in files[1:]:
                Path(str(self.local_path(f"{path}/{name}"))).rename(tmp_path / name)
            return [name for name in names if name not in files[1:]]

    df = spark.range(100, numPartitions=4).selectExpr("id AS x", "id AS y")
    with pytest.raises(StoreError, match="100 written, 25 found"), written(df, PartlyElsewhere(store.uri), ["x"]):
        pass


def test_a_dataset_deleted_from_outside_is_written_again(spark: SparkSession, store: Store) -> None:
    df = spark.range(10).selectExpr("id AS x", "id AS y")
    with written(df, store, ["x"]) as first:
        pass
    store.delete("datasets")
    with written(df, store, ["x"]) as again:
        assert again.train_rows == 10
        assert again.path != first.path
