"""A fit in a thread of its own: its model, what it inherits, how it is ended."""

from __future__ import annotations

import logging
import threading
import time

import psutil
import pytest
import torch
from pyspark import InheritableThread
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import SparkSession

from hvdspark.errors import ClusterError, ConfigurationError, DataError, FitCancelledError, PreemptedError
from hvdspark.events import FitListener, GenerationStarted, StepsDone
from hvdspark.store import Store
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark

LONG = {"epochs": 100_000, "numWorkers": 2}
GONE_WITHIN_S = 5.0


class Started(FitListener):
    """Knows when ranks train."""

    def __init__(self) -> None:
        self.training = threading.Event()

    def on_steps_done(self, event: StepsDone) -> None:
        self.training.set()


def ranks() -> list[psutil.Process]:
    """Rank processes of this user that run now."""
    found = []
    for process in psutil.process_iter():
        try:
            if "hvdspark.launch.rank" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_model_and_the_status(spark: SparkSession, store: Store) -> None:
    estimator = linear(storeUri=store.uri)
    handle = estimator.fitAsync(separable(spark), {estimator.epochs: 3})
    estimator.setEpochs(1)  # of no importance any more
    model = handle.result(timeout=100)
    status = handle.status
    assert (status.state, status.generation, status.world_size) == ("finished", 0, 2)
    assert len(model.summary.history) == 3
    assert model.uri.endswith(f"{status.run_id}/model")
    assert not hasattr(CrossValidator(estimator=estimator), "fitAsync")


def test_cancelled_ranks_and_files_are_gone_within_seconds(
    spark: SparkSession, store: Store, nothing_left_behind: None
) -> None:
    started = Started()
    handle = linear(storeUri=store.uri, listeners=[started], **LONG).fitAsync(separable(spark))
    assert started.training.wait(60)
    assert handle.status.state == "training"
    there = ranks()
    assert len(there) >= 2
    began_s = time.monotonic()
    assert handle.cancel() is True
    _, alive = psutil.wait_procs(there, timeout=GONE_WITHIN_S)
    assert not alive
    print(f"ranks were gone after {time.monotonic() - began_s:.2f} s")
    with pytest.raises(FitCancelledError):
        handle.result(timeout=30)
    assert handle.status.state == "cancelled"
    assert store.list("runs") == store.list("leases") == []


@pytest.mark.slow
def test_a_preempted_fit_goes_on_by_its_id_and_its_weights_are_those_of_one_never_interrupted(
    spark: SparkSession, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rows, started = separable(spark).cache(), Started()
    settings = {"storeUri": store.uri, "batchSize": 2, "epochs": 4}
    handle = linear(listeners=[started], **settings).fitAsync(rows)
    assert started.training.wait(60)
    handle.preempt()
    with pytest.raises(PreemptedError, match="behind a checkpoint.*Hint: fit the same rows with runId=") as caught:
        handle.result(timeout=60)
    run_id = caught.value.run_id
    assert handle.status.state == "preempted"
    assert store.list(f"runs/{run_id}/checkpoints")

    with pytest.raises(ConfigurationError, match="begun with other settings: learningRate was 0.001 and is 0.5"):
        linear(runId=run_id, learningRate=0.5, **settings).fit(rows)
    with pytest.raises(DataError, match="rows have changed"):
        linear(runId=run_id, **settings).fit(rows.where("id != 7"))
    resumed = linear(runId=run_id, **settings).fit(rows)
    assert resumed.uri.endswith(f"runs/{run_id}/model")
    whole = linear(**settings).fit(rows)
    for one, other in zip(resumed.module().parameters(), whole.module().parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(resumed.summary.history) == 4

    with caplog.at_level(logging.WARNING, "hvdspark"):
        again = linear(runId=run_id, **settings).fit(rows)
    assert "nothing trained" in caplog.text
    assert again.uri == resumed.uri
    with pytest.raises(ConfigurationError, match="finished, with other rows"):
        linear(runId=run_id, **settings).fit(rows.where("id != 7"))
    rows.unpersist()
    assert store.list("leases") == []


@pytest.mark.slow
def test_ranks_make_room_when_spark_decommissions_their_executor_and_that_counts_as_no_restart(
    spark: SparkSession, store: Store, nothing_left_behind: None
) -> None:
    scheduler = spark.sparkContext._jsc.sc().taskScheduler()
    executor, started, generations = "driver", Started(), list[GenerationStarted]()

    class Launched(FitListener):
        def on_generation_started(self, event: GenerationStarted) -> None:
            generations.append(event)
            scheduler.executorsPendingDecommission().remove(executor)  # another one has come
            started.training.clear()

    listeners = [Launched(), started]
    handle = linear(storeUri=store.uri, listeners=listeners, maxRestarts=0, **LONG).fitAsync(separable(spark))
    try:
        assert started.training.wait(60)
        why = spark._jvm.org.apache.spark.scheduler.ExecutorDecommissionInfo.apply(
            "a test", spark._jvm.scala.Option.empty()
        )
        scheduler.executorDecommission(executor, why)
        while len(generations) < 2 and not handle.done():
            time.sleep(0.1)
        assert started.training.wait(60)
    finally:
        scheduler.executorsPendingDecommission().remove(executor)
        handle.cancel()
    with pytest.raises(FitCancelledError):
        handle.result(timeout=30)
    assert [(event.generation, event.restart) for event in generations] == [(0, ""), (1, "preempted")]
    assert "has stopped behind a checkpoint" in generations[1].cause


@pytest.mark.slow  # a cancelled handle does the same
def test_a_cancelled_job_group_ends_the_ranks_within_seconds(
    spark: SparkSession, store: Store, nothing_left_behind: None
) -> None:
    started, errors = Started(), list[BaseException]()
    estimator = linear(storeUri=store.uri, listeners=[started], **LONG)

    def fit() -> None:
        spark.sparkContext.setJobGroup("nightly", "a test")
        try:
            estimator.fit(separable(spark))
        except BaseException as error:
            errors.append(error)

    thread = InheritableThread(fit)
    thread.start()
    assert started.training.wait(60)
    there = ranks()
    began_s = time.monotonic()
    spark.sparkContext.cancelJobGroup("nightly")
    _, alive = psutil.wait_procs(there, timeout=GONE_WITHIN_S)
    assert not alive
    print(f"ranks were gone after {time.monotonic() - began_s:.2f} s")
    thread.join(timeout=30)
    assert isinstance(errors[0], ClusterError)
    assert "cancelled" in str(errors[0])
    assert store.list("runs") == store.list("leases") == []
