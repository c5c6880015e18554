"""Fits as a real MLflow server has them: 3.x on sqlite, in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import SparkSession

from hvdspark.errors import HvdSparkError
from hvdspark.estimators import CTRClassifier
from hvdspark.tracking.curve import drawn
from hvdspark.tracking.entries import Curve
from hvdspark.train.callbacks import Callback, TrainState
from tests.mlflow_server import MlflowServer, mlflow_server
from tests.spark.mlflow_runs import WAIT_S, curve, runs_of, written
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark


class FailInEpoch1(Callback):
    def on_epoch_begin(self, state: TrainState) -> None:
        if state.epoch == 1:
            raise ValueError("a callback's own words")


class StopServer(Callback):
    """Waits at the beginning of the second epoch until a file is there: the server is gone."""

    def __init__(self, folder: Path) -> None:
        self.reached, self.gone = folder / "reached", folder / "gone"

    def on_epoch_begin(self, state: TrainState) -> None:
        if state.epoch == 1:
            self.reached.touch()
            deadline = time.monotonic() + WAIT_S
            while not self.gone.exists() and time.monotonic() < deadline:
                time.sleep(0.05)


@pytest.fixture
def fonts() -> None:
    """matplotlib keeps the files of its fonts open."""
    figure = drawn(Curve("", ({"epoch": 0, "train_loss": 1.0},), 0))
    assert figure is not None
    figure.savefig(io.BytesIO())


def artifacts(run: Run) -> set[str]:
    return {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}


def parents(runs: list[Run]) -> list[str | None]:
    return [run.data.tags.get("mlflow.parentRunId") for run in runs]


def candidates(store_uri: str) -> tuple[Any, Any]:
    estimator = linear(storeUri=store_uri, epochs=1, numWorkers=1, predictionCol="score")
    return estimator, ParamGridBuilder().addGrid(estimator.seed, [1, 2]).build()


def test_a_fit_is_written_to_the_active_run_which_stays_open(
    spark: SparkSession, store_uri: str, experiment: str, fonts: None, nothing_left_behind: None
) -> None:
    with mlflow.start_run() as active:
        model = linear(storeUri=store_uri, validationIndicatorCol="is_validation", epochs=3, numWorkers=1).fit(
            separable(spark)
        )
        assert mlflow.active_run() is not None
        assert MlflowClient().get_run(active.info.run_id).info.status == "RUNNING"
        mlflow.log_metric("a_users_own", 1.0)
    (run,) = runs_of(experiment)
    assert (run.info.run_id, run.info.status) == (active.info.run_id, "FINISHED")
    assert run.data.params["epochs"] == "3"
    assert run.data.params["featureCols"] == "['x']"
    for name in ("train_loss", "val_loss", "seconds"):
        assert curve(run, name) == [(row["epoch"], row[name]) for row in model.summary.history], name
    assert curve(run, "step/loss")
    assert {"time/total_seconds", "time/materialize_seconds", "time/loading_seconds"} <= run.data.metrics.keys()
    assert run.data.tags["hvdspark.model_uri"] == model.uri
    assert run.data.tags["version.torch"].startswith("2.")
    assert "loss_curve.png" in artifacts(run)
    inputs = {part.tags[0].value: part.dataset for part in run.inputs.dataset_inputs}
    counts = {context: json.loads(data.profile)["num_rows"] for context, data in inputs.items()}
    assert counts == {"training": 450, "validation": 150}
    assert len(inputs["training"].digest) == 32
    columns = [(column["name"], column["type"]) for column in json.loads(inputs["training"].schema)["mlflow_colspec"]]
    assert columns == [("x", "array"), ("y", "long")]


@pytest.mark.slow
def test_the_server_of_a_param_gets_a_run_of_its_own_which_is_ended(
    spark: SparkSession, store_uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there, and nobody is asked
    classifier = CTRClassifier(
        architecture="lr",
        categoricalCols=["id"],
        labelCol="y",
        storeUri=store_uri,
        trackingUri=uri,
        numWorkers=1,
    )
    model = classifier.fit(separable(spark).select("id", "y"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (run,) = runs_of(experiment)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith(classifier.uid)
    assert run.data.tags["hvdspark.model_uri"] == model.uri
    assert run.data.metrics["memory/tables_mib"] > 0
    assert {"loss_curve.png", "sharding_plan.txt"} <= artifacts(run)


@pytest.mark.slow
def test_nothing_is_written_where_nobody_asked(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator = linear(storeUri=store_uri, epochs=1, numWorkers=1)
    estimator.fit(separable(spark))
    assert runs_of(experiment) == []
    with mlflow.start_run():
        estimator.copy({estimator.trackingUri: ""}).fit(separable(spark))
    (run,) = runs_of(experiment)
    assert run.data.params == {}


def test_a_fit_that_fails_leaves_its_error(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator = linear(storeUri=store_uri, epochs=2, numWorkers=1, callbacks=[FailInEpoch1()])
    uri = mlflow.get_tracking_uri()
    with pytest.raises(HvdSparkError, match="a callback's own words"):
        estimator.copy({estimator.trackingUri: uri}).fit(separable(spark))
    (run,) = runs_of(experiment)
    assert run.info.status == "FAILED"
    assert "a callback's own words" in run.data.tags["hvdspark.error"]
    assert len(curve(run, "train_loss")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", [1, 2])
def test_candidates_are_nested_runs_and_the_best_model_is_in_the_run_itself(
    spark: SparkSession, store_uri: str, experiment: str, parallelism: int
) -> None:
    estimator, grid = candidates(store_uri)
    validator = CrossValidator(
        estimator=estimator,
        estimatorParamMaps=grid,
        evaluator=BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="score"),
        numFolds=2,
        parallelism=parallelism,
    )
    with mlflow.start_run() as active:
        validator.fit(separable(spark, 90))
    first, *others = runs_of(experiment)
    assert first.info.run_id == active.info.run_id
    assert parents([first, *others]) == [None, *[active.info.run_id] * 4]
    assert sorted(run.data.params["seed"] for run in others) == ["1", "1", "2", "2"]
    assert all(run.info.run_name == f"seed={run.data.params['seed']}" for run in others)
    assert all(run.info.status == "FINISHED" and len(curve(run, "train_loss")) == 1 for run in [first, *others])
    digests = {run.inputs.dataset_inputs[0].dataset.digest for run in others}
    assert len(digests) == 2, "one for each fold"


@pytest.mark.slow
def test_candidates_that_are_pipelines_are_nested_runs(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator, grid = candidates(store_uri)
    split = TrainValidationSplit(
        estimator=Pipeline(stages=[estimator]),
        estimatorParamMaps=grid,
        evaluator=BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="score"),
        seed=3,
        parallelism=2,
    )
    with mlflow.start_run() as active:
        split.fit(separable(spark, 90))
    runs = runs_of(experiment)
    assert parents(runs) == [None, active.info.run_id, active.info.run_id]
    assert sorted(run.info.run_name for run in runs[1:]) == ["seed=1", "seed=2"]


@pytest.mark.slow
def test_several_fits_in_one_run(spark: SparkSession, store_uri: str, experiment: str) -> None:
    estimator, grid = candidates(store_uri)
    with mlflow.start_run() as active:
        assert len(estimator.fit(separable(spark, 90), grid)) == 2
        estimator.fit(separable(spark, 90))
        estimator.fit(separable(spark, 90))
    runs = runs_of(experiment)
    assert runs[0].data.params["seed"] == str(estimator.getSeed()), "the first that is no candidate"
    assert parents(runs) == [None, *[active.info.run_id] * 3]


def test_two_fits_in_two_threads_do_not_mix(spark: SparkSession, store_uri: str, experiment: str) -> None:
    data, ids = separable(spark, 90), {}

    def fit(seed: int) -> None:
        with mlflow.start_run() as active:
            ids[seed] = active.info.run_id
            linear(storeUri=store_uri, epochs=seed, seed=seed, numWorkers=1).fit(data)

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = {run.info.run_id: run for run in runs_of(experiment)}
    assert runs.keys() == set(ids.values())
    for seed, run_id in ids.items():
        assert runs[run_id].data.params["seed"] == str(seed)
        assert len(curve(runs[run_id], "train_loss")) == seed


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_harms_no_fit(
    spark: SparkSession,
    store_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the client's own patience is minutes
    waits = StopServer(tmp_path)
    settings: dict[str, Any] = {"storeUri": store_uri, "epochs": 2, "numWorkers": 1, "seed": 5}
    alone = linear(**settings).fit(separable(spark))
    with mlflow_server(tmp_path) as server:
        killer = threading.Thread(target=kill, args=(server, waits))
        killer.start()
        model = linear(trackingUri=server.uri, callbacks=[waits], **settings).fit(separable(spark))
        killer.join()
    written()
    losses = [[row["train_loss"] for row in one.summary.history] for one in (alone, model)]
    assert losses[0] == losses[1]
    warnings = [record.getMessage() for record in caplog.records if record.name == "hvdspark.tracking.writer"]
    said = [text for text in warnings if "the fit goes on" in text]
    lost = [text for text in warnings if "did not take everything; lost: " in text]
    assert (len(said), len(lost)) == (1, 1)
    assert "metric values" in lost[0]
    assert "1 figure" in lost[0]


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything(
    spark: SparkSession,
    store_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    waits = StopServer(tmp_path)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(mlflow_server(tmp_path))
        estimator = linear(storeUri=store_uri, epochs=2, numWorkers=1, trackingUri=server.uri, callbacks=[waits])
        fit = threading.Thread(target=lambda: estimator.fit(separable(spark)))
        fit.start()
        wait_for(waits.reached)
        server.end()
        stack.enter_context(mlflow_server(tmp_path, int(server.uri.rpartition(":")[2])))
        waits.gone.touch()
        fit.join()
        written()
        (run,) = MlflowClient(server.uri).search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert {"train_loss", "time/total_seconds", "best_epoch"} <= run.data.metrics.keys()
    assert "hvdspark.model_uri" in run.data.tags
    assert "lost" not in caplog.text


def kill(server: MlflowServer, waits: StopServer) -> None:
    wait_for(waits.reached)
    server.end()
    waits.gone.touch()


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
