"""From a Criteo-format text file to a scored DataFrame: `make demo`, or `make demo DATA=path/to/train.txt`.

Without --data it draws synthetic clicks from a known teacher (`click_data.py`), so that the AUC of the model can be
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
import torch
from click_data import CATEGORIES, INTEGERS
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.estimators import TorchEstimator

BUCKETS = 1 << 12  # of each categorical column


class ClickNet(nn.Module):
    """Embeddings of the categories beside the numbers, their pairwise products, and a small MLP (after DLRM,
    Naumov et al. 2019, arXiv:1906.00091). The embedding table is replicated on every rank."""

    def __init__(self, fields: int, numbers: int, buckets: int, width: int) -> None:
        super().__init__()
        self.fields, self.numbers, self.buckets, self.width = fields, numbers, buckets, width
        self.table = nn.Embedding(fields * buckets, width)
        nn.init.normal_(self.table.weight, std=0.05)
        self.linear = nn.Embedding(fields * buckets, 1)
        nn.init.zeros_(self.linear.weight)
        self.bottom = nn.Sequential(nn.Linear(numbers, 64), nn.ReLU(), nn.Linear(64, width))
        pairs = (fields + 1) * fields // 2
        self.top = nn.Sequential(nn.Linear(pairs + width, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("offsets", torch.arange(fields) * buckets)
        self.register_buffer("upper", torch.triu_indices(fields + 1, fields + 1, offset=1))

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        keys = ids + self.offsets  # [rows, fields]
        dense = self.bottom(numbers)  # [rows, width]
        vectors = torch.cat([self.table(keys), dense.unsqueeze(1)], dim=1)  # [rows, fields + 1, width]
        products = vectors @ vectors.transpose(1, 2)  # [rows, fields + 1, fields + 1]
        pairs = products[:, self.upper[0], self.upper[1]]  # [rows, pairs]
        wide = self.linear(keys).sum(dim=(1, 2))  # [rows]
        return self.top(torch.cat([pairs, dense], dim=1)).squeeze(1) + wide


def read_criteo(spark: SparkSession, path: str) -> DataFrame:
    """The file as columns label, I1 .. I13, C1 .. C26."""
    schema = ", ".join(["label int", *(f"{name} int" for name in INTEGERS), *(f"{name} string" for name in CATEGORIES)])
    return spark.read.csv(path, sep="\t", schema=schema)


def with_features(clicks: DataFrame) -> DataFrame:
    """Add `numbers` (13 floats, log-scaled, 0 where missing) and `ids` (26 hash buckets)."""
    numbers = [
        F.coalesce((F.log1p(F.greatest(F.col(name), F.lit(0))) - 2.0).cast("float"), F.lit(0.0)) for name in INTEGERS
    ]
    ids = [F.pmod(F.xxhash64(F.coalesce(name, F.lit(""))), F.lit(BUCKETS)) for name in CATEGORIES]
    return clicks.withColumn("numbers", F.array(*numbers).cast("array<float>")).withColumn("ids", F.array(*ids))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a real Criteo text file; by default synthetic clicks are drawn")
    parser.add_argument("--rows", type=int, default=400_000, help="synthetic rows, of which a fifth is the test split")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--store", help="store URI; by default a temporary directory")
    return parser.parse_args(arguments)


def read_splits(
    spark: SparkSession, arguments: argparse.Namespace, scratch: Path
) -> tuple[DataFrame, DataFrame, float | None]:
    """Training rows, test rows, and the best AUC that can be reached on the latter (None for real data)."""
    if arguments.data is not None:
        clicks = with_features(read_criteo(spark, arguments.data))
        is_test = F.pmod(F.xxhash64(*INTEGERS, *CATEGORIES), F.lit(5)) == 0
        return clicks.filter(~is_test), clicks.filter(is_test), None
    print(f"drawing {arguments.rows:,} synthetic clicks", flush=True)
    test_clicks = click_data.draw(arguments.rows // 5, seed=2)
    click_data.write(click_data.draw(arguments.rows - arguments.rows // 5, seed=1), scratch / "train.txt")
    click_data.write(test_clicks, scratch / "test.txt")
    train, test = (with_features(read_criteo(spark, f"file://{scratch}/{name}.txt")) for name in ("train", "test"))
    return train, test, click_data.exact_auc(test_clicks.probability, test_clicks.labels)


def run(spark: SparkSession, arguments: argparse.Namespace, scratch: Path) -> None:
    """Text file -> DataFrame -> fit -> transform -> AUC."""
    train, test, reachable = read_splits(spark, arguments, scratch)
    estimator = TorchEstimator(
        model=ClickNet(len(CATEGORIES), len(INTEGERS), BUCKETS, width=8),
        loss="bce_with_logits",
        optimizer="adam",
        learningRate=2e-3,
        featureCols=["numbers", "ids"],
        labelCol="label",
        numWorkers=arguments.workers,
        batchSize=2048,
        epochs=arguments.epochs,
        storeUri=arguments.store or f"file://{scratch}/store",
        seed=7,
    )
    print(f"training on {arguments.workers} ranks", flush=True)
    model = estimator.fit(train)
    print(model.summary)
    scored = model.transform(test)
    scored.select("label", "I1", "C1", "prediction").show(5)
    auc = BinaryClassificationEvaluator(rawPredictionCol="prediction", numBins=0).evaluate(scored)
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
