"""Beside `mlflow.pyspark.ml.autolog()`: what it writes of a fit is written once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyspark.ml
import mlflow.spark
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StandardScaler
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from torch import nn

from hvdspark.estimators import TorchClassificationModel, TorchClassifier
from tests.spark.mlflow_runs import runs_of
from tests.spark.toys import separable

pytestmark = pytest.mark.spark


@pytest.fixture(autouse=True)
def autologging(experiment: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It is on, and says of nothing that it failed."""
    caplog.set_level(logging.WARNING, "mlflow")
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    mlflow.pyspark.ml.autolog()
    yield
    mlflow.pyspark.ml.autolog(disable=True)
    said = [record.getMessage() for record in caplog.get_records("call") if record.name.startswith("mlflow")]
    assert [text for text in said if text.startswith(("Encountered", "Failed"))] == []


def labelled(spark: SparkSession) -> DataFrame:
    return separable(spark, 90).selectExpr("id", "x AS features", "double(y) AS label")


def classifier(store_uri: str, **changes: Any) -> TorchClassifier:
    torch.manual_seed(3)
    settings: dict[str, Any] = {"storeUri": store_uri, "epochs": 1, "batchSize": 32, "numWorkers": 1, "seed": 11}
    return TorchClassifier(model=nn.Linear(3, 2), **{**settings, **changes})


def in_contexts(run: Run) -> list[str]:
    return sorted(tag.value for part in run.inputs.dataset_inputs for tag in part.tags)


def assert_once(run: Run, estimator: TorchClassifier, prefix: str) -> None:
    """Every Param that has a value is there, once, as autologging calls it; and so are the rows."""
    named = {param.name for param in estimator.params if estimator.isDefined(param)}
    ours = {name for name in run.data.params if name.rpartition(".")[2] in named}
    assert ours >= {prefix + name for name in named}
    assert [context for context in in_contexts(run) if context != "eval"] == ["train"]
    assert run.data.tags["hvdspark.training_rows"] == "90"
    assert len(run.data.tags["hvdspark.training_fingerprint"]) == 32
    assert {"train_loss", "step/loss", "time/total_seconds"} <= run.data.metrics.keys()
    assert run.data.tags["hvdspark.model_uri"].startswith(estimator.getStoreUri())
    assert "hvdspark.lost" not in run.data.tags


@pytest.mark.slow
def test_a_stage_of_a_pipeline(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator = classifier(store_uri, env={"TOKEN_OF_MINE": "x"})
    Pipeline(stages=[StandardScaler(inputCol="features", outputCol="scaled"), estimator]).fit(labelled(spark))
    (run,) = runs_of(experiment)
    assert run.info.status == "FINISHED"
    assert_once(run, estimator, "TorchClassifier.")
    assert {name for name in run.data.params if "." not in name} == {"stages"}


@pytest.mark.slow
def test_an_estimator(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator = classifier(store_uri, env={"TOKEN_OF_MINE": "x"})
    estimator.fit(labelled(spark))
    (run,) = runs_of(experiment)
    assert run.info.status == "FINISHED"
    assert_once(run, estimator, "")
    assert not [name for name in run.data.params if "." in name]


@pytest.mark.slow
def test_candidates(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator = classifier(store_uri)
    search = CrossValidator(
        estimator=Pipeline(stages=[estimator]),
        estimatorParamMaps=ParamGridBuilder().addGrid(estimator.learningRate, [0.01, 0.02]).build(),
        evaluator=MulticlassClassificationEvaluator(),
        numFolds=2,
        seed=5,
        parallelism=2,
    )
    search.fit(labelled(spark))
    runs = runs_of(experiment)
    (first,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    others = [run for run in runs if run is not first]
    assert all(run.data.tags["mlflow.parentRunId"] == first.info.run_id for run in others)
    fits = [run for run in others if "hvdspark.fit" in run.data.tags]
    candidates = [run for run in others if "hvdspark.fit" not in run.data.tags]
    assert (len(fits), len(candidates)) == (4, 2), "a run for each fit, and autologging's for each candidate"
    assert all("train_loss" in run.data.metrics and "avg_f1" not in run.data.metrics for run in fits)
    assert all("avg_f1" in run.data.metrics and "train_loss" not in run.data.metrics for run in candidates)
    # The fit of the best model is in the run of the search, whose own Params keep their names.
    assert (first.data.params["seed"], first.data.params["TorchClassifier.seed"]) == ("5", "11")
    assert first.data.params["numFolds"] == "2"
    assert first.data.params["learningRate"] in ("0.01", "0.02")
    assert in_contexts(first) == ["train"]
    assert len(MlflowClient().get_metric_history(first.info.run_id, "train_loss")) == 1


@pytest.mark.slow
def test_a_model_that_it_may_log_is_logged_once_and_loaded(
    spark: SparkSession, store_uri: str, experiment: str, tmp_path: Path
) -> None:
    allowed = ["pyspark.ml.pipeline.PipelineModel", "pyspark.ml.feature.*", "hvdspark.estimators.*"]
    mlflow.pyspark.ml.autolog(log_model_allowlist=allowed)
    frame = labelled(spark)
    scaler = StandardScaler(inputCol="features", outputCol="scaled")
    estimator = classifier(store_uri, featuresCol="scaled")
    fitted = Pipeline(stages=[scaler, estimator]).fit(frame)
    accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(fitted.transform(frame))
    (run,) = runs_of(experiment)
    assert_once(run, estimator, "TorchClassifier.")
    assert run.data.metrics["accuracy_frame"] == accuracy
    assert [model["artifact_path"] for model in json.loads(run.data.tags["mlflow.log-model.history"])] == ["model"]
    loaded = mlflow.spark.load_model(f"runs:/{run.info.run_id}/model", dfs_tmpdir=str(tmp_path / "loaded"))
    assert isinstance(loaded, PipelineModel)
    assert isinstance(loaded.stages[1], TorchClassificationModel)
    assert predictions(loaded, frame) == predictions(fitted, frame)


def predictions(model: PipelineModel, frame: DataFrame) -> list[float]:
    return [row["prediction"] for row in model.transform(frame).orderBy("id").collect()]
