"""Adult census income with hvdspark inside a Spark ML Pipeline.

    python examples/census.py --data DIR

DIR holds `adult.data` and `adult.test` (UCI Machine Learning Repository, DOI 10.24432/C5XW20). Trains on 2 workers,
scores the test split, prints the AUC, saves the pipeline and scores again with the one that was loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import SQLTransformer, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.estimators import TorchEstimator

NUMBERS = ["age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week"]
CATEGORIES = [
    "workclass",
    "education",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "native_country",
]


class CensusNet(nn.Module):
    """Wide & Deep (Cheng et al. 2016, arXiv:1606.07792): a linear part and an MLP over embeddings and numbers."""

    def __init__(self, numbers: int, categories: int, levels: int, width: int) -> None:
        super().__init__()
        self.numbers, self.categories, self.levels, self.width = numbers, categories, levels, width
        self.wide_ids = nn.Embedding(categories * levels, 1)
        self.wide_numbers = nn.Linear(numbers, 1)
        self.deep_ids = nn.Embedding(categories * levels, width)
        self.deep = nn.Sequential(
            nn.Linear(categories * width + numbers, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )
        self.register_buffer("offsets", torch.arange(categories) * levels)
        nn.init.zeros_(self.wide_ids.weight)
        nn.init.normal_(self.deep_ids.weight, std=0.1)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        keys = ids + self.offsets  # [rows, categories]
        wide = self.wide_ids(keys).sum(dim=(1, 2)) + self.wide_numbers(numbers).squeeze(1)  # [rows]
        deep = torch.cat([self.deep_ids(keys).flatten(1), numbers], dim=1)  # [rows, categories * width + numbers]
        return wide + self.deep(deep).squeeze(1)


def read_adult(spark: SparkSession, path: str) -> DataFrame:
    """A split with names fit for SQL, `?` kept as a category of its own, and a numeric label."""
    rows = spark.read.csv(
        path, header=True, inferSchema=True, ignoreLeadingWhiteSpace=True, ignoreTrailingWhiteSpace=True
    )
    rows = rows.toDF(*(name.strip().replace("-", "_").replace(".", "_").lower() for name in rows.columns))
    last = rows.columns[-1]
    return rows.withColumn("label", (F.col(last) == ">50K").cast("double")).withColumns(
        # Gains and losses are zero for most people and large for a few.
        {name: F.log1p(name) for name in ("capital_gain", "capital_loss", "fnlwgt")}
    )


def pipeline(workers: int, store_uri: str, epochs: int) -> Pipeline:
    indexed = [f"{name}_id" for name in CATEGORIES]
    ids = ", ".join(f"CAST({name} AS BIGINT)" for name in indexed)
    return Pipeline(
        stages=[
            StringIndexer(inputCols=CATEGORIES, outputCols=indexed, handleInvalid="keep"),
            VectorAssembler(inputCols=NUMBERS, outputCol="raw_numbers"),
            StandardScaler(inputCol="raw_numbers", outputCol="numbers", withMean=True),
            # An array of integers, so that no id is ever a float.
            SQLTransformer(statement=f"SELECT *, array({ids}) AS ids FROM __THIS__"),
            TorchEstimator(
                model=CensusNet(len(NUMBERS), len(CATEGORIES), levels=48, width=8),
                loss="bce_with_logits",
                optimizer="adam",
                learningRate=3e-3,
                learningRateSchedule="cosine",
                featureCols=["numbers", "ids"],
                labelCol="label",
                numWorkers=workers,
                batchSize=512,
                epochs=epochs,
                storeUri=store_uri,
                seed=7,
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="directory with adult.data and adult.test")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # So that the executors, and whoever loads the pipeline, can import CensusNet from a module.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from census import pipeline as importable_pipeline

    spark = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER", f"local[{max(arguments.workers, 2)}]"))
        .appName("hvdspark census")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    spark.sparkContext.addPyFile(os.path.abspath(__file__))
    train, test = (read_adult(spark, f"{arguments.data}/adult.{split}") for split in ("data", "test"))
    evaluator = BinaryClassificationEvaluator(rawPredictionCol="prediction", numBins=0)
    with tempfile.TemporaryDirectory(prefix="hvdspark-census-") as scratch:
        model = importable_pipeline(arguments.workers, f"file://{scratch}/store", arguments.epochs).fit(train)
        print(model.stages[-1].summary)
        auc = evaluator.evaluate(model.transform(test))
        print(f"test AUC {auc:.4f} with {arguments.workers} workers")
        model.write().overwrite().save(f"{scratch}/pipeline")
        loaded = PipelineModel.load(f"{scratch}/pipeline")
        print(f"test AUC {evaluator.evaluate(loaded.transform(test)):.4f} after saving and loading")
    spark.stop()


if __name__ == "__main__":
    main()
