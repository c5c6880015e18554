"""Executors that go and come back while estimators fit: fewer ranks, and more again, and the same model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.estimators import CTRClassifier, TorchEstimator, ctr
from hvdspark.estimators.ctr_program import click_program
from hvdspark.events import CheckpointCommitted, FitEvent, FitListener, GenerationStarted, RankLost, TablesRead
from hvdspark.train import Callback
from hvdspark.train.callbacks import TrainState
from tests.spark.session_fits import clicks
from tests.spark.toys import separable
from tests.unit.train.test_loop_tables import ShardedNet
from tests.visits import Visits, one_for_each_row

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(900)]

ROWS, BATCH, EPOCHS = 512, 16, 5
WAIT_S = 90.0
BASE = 16.0  # an epoch's visits of a row are a digit of its number, which float32 has exactly


class InTime(Callback):
    """The first ranks do not end before they are killed, nor does the one that is left before it is asked to make room
    for two."""

    def on_batch_end(self, state: TrainState) -> None:
        rank = hvdspark.context()
        if (rank.generation, state.epoch) in ((0, 1), (1, 2)):
            deadline = time.monotonic() + WAIT_S
            while not rank.preempted() and time.monotonic() < deadline:
                time.sleep(0.05)


class Capacity(FitListener):
    """Takes an executor away behind the first checkpoint, and gives it back behind one of the rank that is left."""

    def __init__(self, spark: SparkSession) -> None:
        self._context: Any = spark.sparkContext._jsc.sc()
        self._none: Any = spark.sparkContext._jvm.PythonUtils.toScalaMap({})  # type: ignore[union-attr]
        self.told: list[FitEvent] = []
        self._taken = False

    def on_event(self, event: FitEvent) -> None:
        self.told.append(event)
        if isinstance(event, CheckpointCommitted):
            started = self.of(GenerationStarted)
            if len(started) == 1 and not self._taken:
                self._taken = True
                # Spark wants one fewer from now on: no other one takes its place.
                self._context.killExecutor(self._context.getExecutorIds().apply(0))
            elif len(started) == 2:
                self.give_back()

    def give_back(self) -> None:
        self._context.requestTotalExecutors(2, 0, self._none)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def generations(self) -> list[tuple[int, str]]:
        return [(event.world_size, event.restart) for event in self.of(GenerationStarted)]


@pytest.fixture
def capacity(local_cluster: SparkSession) -> Iterator[Capacity]:
    found = Capacity(local_cluster)
    yield found
    found.give_back()
    local_cluster.sparkContext.parallelize([0, 1], 2).count()


def test_every_row_of_every_epoch_is_trained_once(
    local_cluster: SparkSession, capacity: Capacity, store_uri: str
) -> None:
    rows = local_cluster.range(ROWS).selectExpr("id", "cast(0 as float) as label")
    estimator = TorchEstimator(
        model=Visits(ROWS),
        loss=one_for_each_row,
        optimizer=torch.optim.SGD,
        featureCols=["id"],
        callbacks=[InTime()],
        listeners=[capacity],
        numWorkers=2,
        minWorkers=1,
        batchSize=BATCH,
        epochs=EPOCHS,
        learningRate=float(BATCH),
        learningRateSchedule="step",
        learningRateScheduleArgs={"step_size": ROWS / BATCH, "gamma": 1 / BASE},
        checkpointIntervalSteps=4,
        storeUri=store_uri,
    )
    table = estimator.fit(rows).module().state_dict()["table.weight"]
    assert capacity.generations() == [(2, ""), (1, "failed"), (2, "resized")]
    assert [event.kind for event in capacity.of(RankLost)] == ["executor_lost"]
    expected = -sum(BASE**-epoch for epoch in range(EPOCHS))
    assert torch.equal(table, torch.full_like(table, expected)), "each row is once in each digit"


def test_tables_move_no_more_than_they_must_and_the_auc_is_that_of_an_undisturbed_fit(
    local_cluster: SparkSession, capacity: Capacity, store_uri: str
) -> None:
    data = separable(local_cluster).cache()
    common: dict[str, Any] = {
        "loss": "bce_with_logits",
        "optimizer": "adam",
        "featureCols": ["x", "id"],
        "labelCol": "y",
        "validationIndicatorCol": "is_validation",
        "metrics": ["auc"],
        "learningRate": 0.05,
        "batchSize": 16,
        "epochs": 4,
        "numWorkers": 2,
        "storeUri": store_uri,
    }
    calm = TorchEstimator(model=ShardedNet("adam", 600), **common).fit(data).summary
    model = TorchEstimator(
        model=ShardedNet("adam", 600),
        callbacks=[InTime()],
        listeners=[capacity],
        minWorkers=1,
        checkpointIntervalSteps=4,
        **common,
    ).fit(data)
    data.unpersist()
    assert capacity.generations() == [(2, ""), (1, "failed"), (2, "resized")]
    aucs = [[row["val_auc"] for row in summary.history] for summary in (calm, model.summary)]
    assert max(abs(one - other) for one, other in zip(*aucs, strict=True)) <= 0.002
    assert max(aucs[0]) > 0.8
    # The rank that is left has half of the rows on its host, and then all of them; the one that comes has none.
    read = capacity.of(TablesRead)
    assert len(read) == 2
    assert all(0 < event.moved_bytes <= 0.6 * event.bytes for event in read)
    assert model.summary.tableBytesMoved == sum(event.moved_bytes for event in read)
    assert "of tables read again" in repr(model.summary)


def test_click_models_meet_every_row_of_every_epoch_once(
    local_cluster: SparkSession, capacity: Capacity, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clicks(local_cluster).selectExpr("cast(id as string) as row", "price", "item", "clicked").cache()
    common: dict[str, Any] = {
        "architecture": "deepfm",
        "continuousCols": ["price"],
        "categoricalCols": ["row", "item"],
        "labelCol": "clicked",
        "embeddingDim": 4,
        "hiddenUnits": [8],
        "dropout": 0.0,
        "batchSize": 16,
        "epochs": EPOCHS,
        "precision": "float32",
        "numWorkers": 2,
        "storeUri": store_uri,
        "seed": 3,
    }
    calm = CTRClassifier(**common).fit(data)
    # It takes no callbacks from users.
    monkeypatch.setattr(ctr, "click_program", lambda *given: replace(click_program(*given), callbacks=(InTime(),)))
    model = CTRClassifier(minWorkers=1, checkpointIntervalSteps=20, listeners=[capacity], **common).fit(data)
    assert capacity.generations() == [(2, ""), (1, "failed"), (2, "resized")]
    met = model.embeddings("row").groupBy("count").count().collect()
    assert [(row[0], row[1]) for row in met] == [(EPOCHS, data.count())], "a step counts the ids that it meets"
    auc = BinaryClassificationEvaluator(labelCol="clicked")
    assert abs(auc.evaluate(model.transform(data)) - auc.evaluate(calm.transform(data))) <= 0.002
    data.unpersist()
