"""Adult census income with hvdspark inside a Spark ML Pipeline.

    python examples/census.py --data DIR
    python examples/census.py --data DIR --ctr

DIR holds `adult.data` and `adult.test` (UCI Machine Learning Repository, DOI 10.24432/C5XW20). Trains on 2 workers,
scores the test split, prints the AUC, saves the pipeline and scores again with the one that was loaded. With --ctr a
CTRClassifier takes the raw columns, where otherwise a module of our own takes indexed and scaled ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import Bucketizer, SQLTransformer, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.estimators import CTRClassifier, TorchEstimator

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
NUMBERS = ["age", "education_num", "hours_per_week", "log_capital_gain", "log_capital_loss"]
# Numbers also enter as categories of a few values each, so that the model can learn a curve.
SPLITS = {
    "age": range(20, 80, 3),
    "hours_per_week": range(5, 100, 5),
    "capital_gain": [1, *range(1000, 20_000, 1000)],
    "capital_loss": [1, *range(1400, 2600, 100)],
}
LEVELS = 48  # more than any category has


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
    return rows.withColumn("label", (F.col(last) == ">50K").cast("double"))


def pipeline(workers: int, store_uri: str, epochs: int | None) -> Pipeline:
    indexed = [f"{name}_id" for name in CATEGORIES]
    bucketed = [f"{name}_bucket" for name in SPLITS]
    splits = [[float("-inf"), *map(float, values), float("inf")] for values in SPLITS.values()]
    ids = ", ".join(f"CAST({name} AS BIGINT)" for name in [*indexed, *bucketed])
    return Pipeline(
        stages=[
            StringIndexer(inputCols=CATEGORIES, outputCols=indexed, handleInvalid="keep"),
            Bucketizer(splitsArray=splits, inputCols=list(SPLITS), outputCols=bucketed),
            # An array of integers, so that no id is ever a float; gains are zero for most people, large for a few.
            SQLTransformer(
                statement=f"SELECT *, array({ids}) AS ids, log1p(capital_gain) AS log_capital_gain, "
                "log1p(capital_loss) AS log_capital_loss FROM __THIS__"
            ),
            VectorAssembler(inputCols=NUMBERS, outputCol="raw_numbers"),
            StandardScaler(inputCol="raw_numbers", outputCol="numbers", withMean=True),
            TorchEstimator(
                model=CensusNet(len(NUMBERS), len(CATEGORIES) + len(SPLITS), LEVELS, width=8),
                loss="bce_with_logits",
                optimizer="adam",
                learningRate=3e-3,
                learningRateSchedule="cosine",
                featureCols=["numbers", "ids"],
                labelCol="label",
                numWorkers=workers,
                batchSize=512,
                epochs=epochs or 8,
                storeUri=store_uri,
                seed=7,
            ),
        ]
    )


def ctr_pipeline(workers: int, store_uri: str, epochs: int | None) -> Pipeline:
    """Strings as they are; numbers as numbers and, cut into intervals, as categories too. All else is the default."""
    bucketed = [f"{name}_bucket" for name in SPLITS]
    splits = [[float("-inf"), *map(float, values), float("inf")] for values in SPLITS.values()]
    ids = ", ".join(f"CAST({name} AS INT) AS {name}_id" for name in bucketed)
    return Pipeline(
        stages=[
            Bucketizer(splitsArray=splits, inputCols=list(SPLITS), outputCols=bucketed),
            SQLTransformer(statement=f"SELECT *, {ids} FROM __THIS__"),
            CTRClassifier(
                architecture="wide_deep",
                continuousCols=["age", "education_num", "hours_per_week", "capital_gain", "capital_loss"],
                categoricalCols=[*CATEGORIES, *(f"{name}_id" for name in bucketed)],
                labelCol="label",
                numWorkers=workers,
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
    parser.add_argument("--epochs", type=int, help="default: 8, and with --ctr what the rows suggest")
    parser.add_argument("--ctr", action="store_true", help="CTRClassifier on the raw columns")
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # So that the executors, and whoever loads the pipeline, can import CensusNet from a module.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from census import pipeline as importable_pipeline

    make_pipeline = ctr_pipeline if arguments.ctr else importable_pipeline
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
    score = "rawPrediction" if arguments.ctr else "prediction"
    evaluator = BinaryClassificationEvaluator(rawPredictionCol=score, numBins=0)
    with tempfile.TemporaryDirectory(prefix="hvdspark-census-") as scratch:
        model = make_pipeline(arguments.workers, f"file://{scratch}/store", arguments.epochs).fit(train)
        print(model.stages[-1].summary)
        auc = evaluator.evaluate(model.transform(test))
        print(f"test AUC {auc:.4f} with {arguments.workers} workers")
        model.write().overwrite().save(f"{scratch}/pipeline")
        loaded = PipelineModel.load(f"{scratch}/pipeline")
        print(f"test AUC {evaluator.evaluate(loaded.transform(test)):.4f} after saving and loading")
    spark.stop()


if __name__ == "__main__":
    main()
