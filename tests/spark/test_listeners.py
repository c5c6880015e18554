"""What listeners hear of real fits, and that nothing they do changes one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from hvdspark.errors import DataError, SchemaError
from hvdspark.estimators import CTRClassifier, TorchEstimator
from hvdspark.events import (
    DatasetReady,
    EpochEnded,
    FitEnded,
    FitEvent,
    FitFailed,
    FitListener,
    FitStarted,
    PhaseStarted,
    StepsDone,
)
from hvdspark.train import History
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.listeners import Seen
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark


class Broken(FitListener):
    def on_event(self, event: FitEvent) -> None:
        raise ValueError("a listener's own words")


class FailInEpoch1(Callback):
    def on_epoch_begin(self, state: TrainState) -> None:
        if state.epoch == 1 and state.rank == 0:
            raise ValueError("a callback's own words")


def test_the_order_of_events_beside_a_listener_that_raises(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen, history = Seen(), History()
    settings: dict[str, Any] = {"validationIndicatorCol": "is_validation", "storeUri": store_uri}
    model = linear(listeners=[Broken(), seen, history], env={"A_TOKEN": "secret"}, **settings).fit(separable(spark))
    kinds = [type(event) for event in seen.events]
    wanted = (FitStarted, PhaseStarted, DatasetReady, EpochEnded, FitEnded)
    assert [kind for kind in kinds if kind in wanted] == [
        FitStarted,
        PhaseStarted,
        DatasetReady,
        PhaseStarted,
        EpochEnded,
        EpochEnded,
        FitEnded,
    ]
    assert kinds[0] is FitStarted
    assert kinds[-1] is FitEnded
    assert kinds.index(DatasetReady) < kinds.index(StepsDone) < kinds.index(EpochEnded)
    assert len({event.run_id for event in seen.events}) == 1
    started, ended = seen.events[0], seen.events[-1]
    assert isinstance(started, FitStarted)
    assert isinstance(ended, FitEnded)
    assert (started.params["batchSize"], started.features, started.labels) == (64, ("x",), ("y",))
    assert (started.params["env"], started.world_size, started.plan) == (["A_TOKEN"], 2, ())
    assert [event.phase for event in seen.of(PhaseStarted)] == ["materialize", "launch"]
    (ready,) = seen.of(DatasetReady)
    assert (ready.dataset.train_rows, ready.dataset.validation_rows) == (450, 150)
    assert [dict(event.row) for event in seen.of(EpochEnded)] == model.summary.history
    assert list(ended.history) == history.rows == model.summary.history
    assert (ended.model_uri, ended.best_epoch) == (model.uri, model.summary.bestEpoch)
    assert ended.warnings == tuple(model.summary.warnings)
    assert "Broken failed in FitStarted" in caplog.text
    assert "Broken failed in FitEnded" in caplog.text


def test_a_fit_that_fails_says_so_once_and_keeps_its_history(spark: SparkSession, store_uri: str) -> None:
    seen, history = Seen(), History()
    estimator = linear(epochs=3, callbacks=[FailInEpoch1()], listeners=[seen, history], storeUri=store_uri)
    with pytest.raises(Exception, match="a callback's own words") as raised:
        estimator.fit(separable(spark))
    assert isinstance(seen.events[0], FitStarted)
    assert isinstance(seen.events[-1], FitFailed)
    assert seen.events[-1].error is raised.value
    assert len(seen.of(FitFailed) + seen.of(FitEnded)) == 1
    assert [row["epoch"] for row in history.rows] == [0]

    refused = Seen()
    with pytest.raises(SchemaError, match="nothing"):
        estimator.setListeners([refused]).setFeatureCols(["nothing"]).fit(separable(spark))
    assert refused.events == [], "what is refused has not started"

    said: list[str] = []

    class Failure(FitListener):
        def on_fit_failed(self, event: FitFailed) -> None:
            said.append(str(event.error))

    with pytest.raises(DataError) as unusable:
        linear(listeners=[Failure()], storeUri=store_uri).fit(separable(spark).withColumn("y", F.lit(None).cast("int")))
    assert said == [str(unusable.value)], "listeners are told in the words of Params, too"
    assert "handleInvalid is about features" in said[0]


@pytest.mark.slow
def test_fits_of_a_cross_validator_are_told_apart(spark: SparkSession, store_uri: str) -> None:
    seen = Seen()
    estimator = linear(epochs=1, rawPredictionCol="raw", listeners=[seen], storeUri=store_uri)
    validator = CrossValidator(
        estimator=estimator,
        estimatorParamMaps=ParamGridBuilder().addGrid(estimator.learningRate, [0.1, 0.2]).build(),
        evaluator=BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="raw"),
        numFolds=2,
        parallelism=2,
    )
    validator.fit(separable(spark, rows=200))
    ids = {event.run_id for event in seen.events}
    assert len(ids) == 5, "two folds of two, and the best on all rows"
    for run_id in ids:
        kinds = [type(event) for event in seen.events if event.run_id == run_id]
        assert (kinds[0], kinds[-1]) == (FitStarted, FitEnded)


def test_the_plan_of_sharded_tables_is_told_and_logged(
    spark: SparkSession, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    data = spark.range(200).select((F.col("id") % 7).alias("page"), (F.col("id") % 2).alias("label"))
    classifier = CTRClassifier(
        architecture="wide_deep", categoricalCols=["page"], embeddingDim=4, hiddenUnits=[4], epochs=1, numWorkers=1
    )
    with caplog.at_level(logging.INFO, "hvdspark"):
        classifier.setListeners([seen]).setStoreUri(store_uri).fit(data)  # type: ignore[attr-defined]
    (plan,) = seen.events[0].plan  # type: ignore[attr-defined]
    assert (plan.tables, len(plan.rank_bytes)) == (1, 1)
    assert np.isfinite(plan.rank_bytes).all()
    assert plan.available is not None
    assert plan.setting in plan.text + caplog.text
    assert "sharded tables take up to" in caplog.text


def test_listeners_are_not_saved(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "estimator")
    linear(listeners=[Seen()]).write().save(path)
    assert TorchEstimator.load(path).getListeners() == ()
