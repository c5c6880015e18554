"""Rows/s of `TorchModel.transform` beside scoring one row per forward, on the same 3-layer MLP and the same rows; and
of `CTRClassificationModel.transform` with 26 tables, whose rows are found in mapped files.

    python benchmarks/transform.py [--rows 200000] [--repeats 3]

One row per forward is what Horovod's own Spark TorchModel does (horovod/spark/torch/estimator.py `_transform`): an RDD
of Rows, `model(torch.tensor([row[column]]))` for each, a new Row for each. Both read the same cached DataFrame, and
the result of both is forced with an aggregate. Repeats are interleaved, medians reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.estimators import CTRClassifier, TorchEstimator, TorchModel

WIDTH = 16


def row_by_row(model: TorchModel, rows: DataFrame) -> float:
    """Sum of the scores, one forward for each row."""
    module = model.module()

    def predict(part: Iterator[Row]) -> Iterator[float]:
        torch.set_num_threads(1)
        with torch.no_grad():
            for row in part:
                scores = module(torch.from_numpy(row["x"].toArray()).float().unsqueeze(0))
                yield Row(**row.asDict(), prediction=scores.item())["prediction"]

    return rows.rdd.mapPartitions(predict).sum()


def batched(model: TorchModel, rows: DataFrame) -> float:
    return model.transform(rows).agg(F.sum("prediction")).head()[0]


def with_tables(spark: SparkSession, rows: int, repeats: int, store: str) -> float:
    """Rows/s of a DLRM with 26 tables, whose ids are skewed as 1 / rank, of up to 10^6."""
    columns = [f"C{number}" for number in range(26)]
    drawn = spark.range(0, rows, 1, 4).select(
        F.rand(1).alias("I"),
        (F.rand(2) < 0.25).cast("int").alias("label"),
        *[F.exp(F.rand(3 + number) * 13.8).cast("long").alias(column) for number, column in enumerate(columns)],
    )
    drawn.cache().count()
    classifier = CTRClassifier(
        architecture="dlrm", continuousCols=["I"], categoricalCols=columns, labelCol="label", epochs=1, storeUri=store
    )
    model = classifier.fit(drawn)

    def score() -> float:
        return model.transform(drawn).agg(F.sum("prediction")).head()[0]

    score()
    return rows / statistics.median(timed(score)[0] for _ in range(repeats))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    value = action()
    return time.perf_counter() - started, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows for transform")
    parser.add_argument("--single-rows", type=int, default=50_000, help="rows for one row per forward")
    parser.add_argument("--table-rows", type=int, default=200_000, help="rows for transform with tables")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")

    def data(rows: int) -> DataFrame:
        numbers = F.array(*[F.rand(k) for k in range(WIDTH)])
        drawn = spark.range(0, rows, 1, 4).select(
            "id", array_to_vector(numbers).alias("x"), (F.col("id") % 2).alias("y")
        )
        drawn.cache().count()
        return drawn

    many, few = data(arguments.rows), data(arguments.single_rows)
    mlp = nn.Sequential(
        nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0)
    )
    with tempfile.TemporaryDirectory(prefix="hvdspark-bench-") as scratch:
        model = TorchEstimator(
            model=mlp, loss="bce_with_logits", featureCols=["x"], labelCol="y", storeUri=f"file://{scratch}"
        ).fit(few)
        _, ours = timed(lambda: batched(model, few))
        _, theirs = timed(lambda: row_by_row(model, few))
        assert abs(ours - theirs) < 1e-6 * arguments.single_rows, (ours, theirs)
        seconds: dict[str, list[float]] = {"transform": [], "one row per forward": []}
        for _ in range(arguments.repeats):
            seconds["transform"].append(timed(lambda: batched(model, many))[0])
            seconds["one row per forward"].append(timed(lambda: row_by_row(model, few))[0])
        rates = {
            "transform": arguments.rows / statistics.median(seconds["transform"]),
            "one row per forward": arguments.single_rows / statistics.median(seconds["one row per forward"]),
        }
    for name, rate in rates.items():
        print(f"{name:22} {rate:12,.0f} rows/s")
    with tempfile.TemporaryDirectory(prefix="hvdspark-bench-") as scratch:
        rate = with_tables(spark, arguments.table_rows, arguments.repeats, f"file://{scratch}")
        print(f"{'26 tables':22} {rate:12,.0f} rows/s")
    print(f"{'ratio':22} {rates['transform'] / rates['one row per forward']:12.1f}")
    spark.stop()


if __name__ == "__main__":
    main()
