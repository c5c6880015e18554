"""From a Criteo-format text file to a scored DataFrame: `make demo`, or `make demo DATA=path/to/train.txt`.

Without --data it draws synthetic clicks from a known model (`click_data.py`), so that the AUC of the model can be
printed beside the best AUC that anyone could reach on those rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import click_data
from click_data import CATEGORIES, INTEGERS
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from hvdspark.estimators import CTRClassifier
from hvdspark.models import ARCHITECTURES


def read_criteo(spark: SparkSession, path: str) -> DataFrame:
    """The file as columns label, I1 .. I13, C1 .. C26."""
    schema = ", ".join(["label int", *(f"{name} int" for name in INTEGERS), *(f"{name} string" for name in CATEGORIES)])
    return spark.read.csv(path, sep="\t", schema=schema)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a real Criteo text file; by default synthetic clicks are drawn")
    parser.add_argument("--rows", type=int, default=400_000, help="synthetic rows, of which a fifth is the test split")
    parser.add_argument("--architecture", default="dlrm", help=", ".join(ARCHITECTURES))
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--store", help="store URI; by default a temporary directory")
    return parser.parse_args(arguments)


def read_splits(
    spark: SparkSession, arguments: argparse.Namespace, scratch: Path
) -> tuple[DataFrame, DataFrame, float | None]:
    """Training rows, test rows, and the best AUC that can be reached on the latter (None for real data)."""
    if arguments.data is not None:
        clicks = read_criteo(spark, arguments.data)
        is_test = F.pmod(F.xxhash64(*INTEGERS, *CATEGORIES), F.lit(5)) == 0
        return clicks.filter(~is_test), clicks.filter(is_test), None
    print(f"drawing {arguments.rows:,} synthetic clicks", flush=True)
    test_clicks = click_data.draw(arguments.rows // 5, seed=2)
    click_data.write(click_data.draw(arguments.rows - arguments.rows // 5, seed=1), scratch / "train.txt")
    click_data.write(test_clicks, scratch / "test.txt")
    train, test = (read_criteo(spark, f"file://{scratch}/{name}.txt") for name in ("train", "test"))
    return train, test, click_data.exact_auc(test_clicks.probability, test_clicks.labels)


def run(spark: SparkSession, arguments: argparse.Namespace, scratch: Path) -> None:
    """Text file -> DataFrame -> fit -> transform -> AUC."""
    train, test, reachable = read_splits(spark, arguments, scratch)
    classifier = CTRClassifier(
        architecture=arguments.architecture,
        continuousCols=INTEGERS,
        categoricalCols=CATEGORIES,
        labelCol="label",
        handleInvalid="keep",
        numWorkers=arguments.workers,
        batchSize=1024,
        learningRate=2e-3,
        learningRateSchedule="constant",
        embeddingOptimizer="adam",
        embeddingLearningRate=2e-3,
        epochs=arguments.epochs,
        storeUri=arguments.store or f"file://{scratch}/store",
        seed=7,
    )
    print(f"training {arguments.architecture} on {arguments.workers} ranks, tables sharded over them", flush=True)
    model = classifier.fit(train)
    print(model.summary)
    scored = model.transform(test)
    scored.select("label", "I1", "C1", "probability", "prediction").show(5)
    auc = BinaryClassificationEvaluator(numBins=0).evaluate(scored)
    print(f"test AUC {auc:.4f}" + (f", best reachable {reachable:.4f}" if reachable is not None else ""))


def main() -> None:
    arguments = parse()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    started = time.perf_counter()
    spark = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER", f"local[{max(arguments.workers, 2)}]"))
        .appName("hvdspark demo")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory(prefix="hvdspark-demo-") as scratch:
        run(spark, arguments, Path(scratch))
    spark.stop()
    print(f"finished in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
