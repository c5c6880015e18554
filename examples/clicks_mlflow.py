"""A click model in MLflow: fitted under a run, tuned under another, registered, loaded again and scored.

    pip install 'hvdspark[mlflow]' mlflow     # the second has the server, which may be another machine's
    mlflow server --port 5000 &
    python examples/clicks_mlflow.py --tracking http://127.0.0.1:5000

What then is at http://127.0.0.1:5000: the run "clicks" with Params, a curve of each metric and the loss curve as a
picture; the run "learning rate" with a nested run for each candidate of a CrossValidator; the registered model
"clicks", whose best version has the alias "champion".

The clicks are synthetic (`click_data.py`): no number of this says anything about real ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import click_data
import mlflow
import numpy as np
from click_data import CATEGORIES, INTEGERS
from clicks import read_criteo
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.functions import vector_to_array
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession

from hvdspark import mlflow_flavor
from hvdspark.estimators import CTRClassificationModel, CTRClassifier

CROSSED = "C2_C8"  # a pair of categories as one, which no single one of them tells


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking", metavar="URI", help="MLflow server; by default MLFLOW_TRACKING_URI or MLflow's")
    parser.add_argument("--experiment", default="clicks")
    parser.add_argument("--rows", type=int, default=60_000, help="synthetic rows, of which a fifth is the test split")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--store", help="store URI; by default a temporary directory")
    return parser.parse_args(arguments)


def read_splits(spark: SparkSession, rows: int, scratch: Path) -> tuple[DataFrame, DataFrame]:
    """Training and test rows."""
    splits = []
    for name, count, seed in (("train", rows - rows // 5, 1), ("test", rows // 5, 2)):
        click_data.write(click_data.draw(count, seed), scratch / f"{name}.txt")
        splits.append(read_criteo(spark, f"file://{scratch}/{name}.txt"))
    return splits[0], splits[1]


def exact_auc() -> BinaryClassificationEvaluator:
    return BinaryClassificationEvaluator(numBins=0)


def crossed() -> SQLTransformer:
    return SQLTransformer(statement=f"SELECT *, concat_ws('/', C2, C8) AS {CROSSED} FROM __THIS__")


def classifier(store_uri: str, arguments: argparse.Namespace) -> CTRClassifier:
    return CTRClassifier(
        architecture="wide_deep",
        continuousCols=INTEGERS,
        categoricalCols=[*CATEGORIES, CROSSED],
        handleInvalid="keep",
        embeddingDim=8,
        embeddingMinCount=3,  # most ids occur once or twice in so few rows, and would be learnt by heart
        embeddingLearningRate=0.02,
        hiddenUnits=[64, 32],
        numWorkers=arguments.workers,
        batchSize=1024,
        epochs=arguments.epochs,
        validationFraction=0.1,
        storeUri=store_uri,
        seed=7,
    )


def fit_once(ctr: CTRClassifier, train: DataFrame, test: DataFrame) -> CTRClassificationModel:
    """A Pipeline under a run: what happens in the fit is written there, by hvdspark and without a word of ours."""
    with mlflow.start_run(run_name="clicks"):
        pipeline = Pipeline(stages=[crossed(), ctr]).fit(train)
        mlflow.log_metric("test_auc", exact_auc().evaluate(pipeline.transform(test)))
        model: CTRClassificationModel = pipeline.stages[-1]
        mlflow_flavor.log_model(model, name="clicks", registered_model_name="clicks")
    return model


def tune(ctr: CTRClassifier, train: DataFrame, test: DataFrame, folds: int) -> None:
    """Candidates are nested runs; the best model, fitted on all rows, is in the run itself and becomes the champion."""
    validator = CrossValidator(
        estimator=ctr,
        estimatorParamMaps=ParamGridBuilder().addGrid(ctr.learningRate, [5e-4, 5e-3]).build(),
        evaluator=exact_auc(),
        numFolds=folds,
        seed=7,
    )
    with mlflow.start_run(run_name="learning rate"):
        # In the Pipeline, and not around it: the stages before are applied once, not for each candidate.
        model = Pipeline(stages=[crossed(), validator]).fit(train)
        tuned = model.stages[-1]
        mlflow.log_metric("best_mean_auc", max(tuned.avgMetrics))
        mlflow.log_metric("test_auc", exact_auc().evaluate(model.transform(test)))
        mlflow_flavor.log_model(
            tuned.bestModel, name="clicks", registered_model_name="clicks", registered_model_alias="champion"
        )


def load_and_score(test: DataFrame) -> float:
    """The champion as a Transformer of Spark, and on rows of pandas; how far their probabilities are apart at most."""
    rows = crossed().transform(test).drop("label").limit(1000).cache()
    scored = mlflow_flavor.load_model("models:/clicks@champion").transform(rows)
    in_spark = scored.select(vector_to_array("probability")[1].alias("p")).toPandas()["p"]
    without_spark = mlflow.pyfunc.load_model("models:/clicks@champion").predict(rows.toPandas())["probability"]
    return float(np.abs(np.stack(without_spark.to_list())[:, 1] - in_spark.to_numpy()).max())


def run(spark: SparkSession, arguments: argparse.Namespace, scratch: Path) -> CTRClassificationModel:
    """All of it; returns the model of the first run."""
    if arguments.tracking:
        mlflow.set_tracking_uri(arguments.tracking)
    mlflow.set_experiment(arguments.experiment)
    train, test = read_splits(spark, arguments.rows, scratch)
    ctr = classifier(arguments.store or f"file://{scratch}/store", arguments)
    model = fit_once(ctr, train, test)
    print(model.summary)
    tune(ctr, train, test, arguments.folds)
    print(f"probabilities with and without Spark are {load_and_score(test):.1e} apart at most")
    print(f"all of it is at {mlflow.get_tracking_uri()}")
    return model


def main() -> None:
    arguments = parse()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER", f"local[{max(arguments.workers, 2)}]"))
        .appName("hvdspark clicks in MLflow")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory(prefix="hvdspark-clicks-") as scratch:
        run(spark, arguments, Path(scratch))
    spark.stop()


if __name__ == "__main__":
    main()
