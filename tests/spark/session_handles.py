"""How fits are ended from outside, and batches of streams, in a session of any kind. `test_any_session.py` runs each
where there is one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import DataFrame, SparkSession
from torch import nn

from hvdspark.errors import ClusterError, FitCancelledError, PreemptedError
from hvdspark.estimators import TorchModel
from hvdspark.estimators.handle import FitHandle
from hvdspark.events import FitListener, FitStarted, StepsDone
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.toys import files_in, linear, scores, separable

_TRAINS_WITHIN_S = 120.0
_ENDS_WITHIN_S = 30.0
_GONE_WITHIN_S = 5.0


class Training(FitListener):
    """Knows when ranks train, and what the run is called."""

    def __init__(self) -> None:
        self.begun, self.run_id = threading.Event(), ""

    def on_fit_started(self, event: FitStarted) -> None:
        self.run_id = event.run_id

    def on_steps_done(self, event: StepsDone) -> None:
        self.begun.set()


class Named(Callback):
    """Leaves the pid of each rank."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_train_begin(self, state: TrainState) -> None:
        Path(self._folder, f"rank-{state.rank}").write_text(str(os.getpid()))


def fits_are_ended_by_their_handles(spark: SparkSession, folder: str) -> None:
    """Cancelled; and preempted, and gone on with by its id."""
    handle, _ = _training(spark, folder)
    assert _ranks_are_gone_after(handle.cancel, folder)
    with pytest.raises(FitCancelledError):
        handle.result(timeout=_ENDS_WITHIN_S)
    assert handle.status.state == "cancelled"
    assert files_in(Path(folder) / "store") == []

    handle, _ = _training(spark, folder, epochs=40_000)
    assert _ranks_are_gone_after(handle.preempt, folder, within_s=_ENDS_WITHIN_S)
    with pytest.raises(PreemptedError, match="behind a checkpoint") as caught:
        handle.result(timeout=_ENDS_WITHIN_S)
    goes_on, training = _training(spark, folder, epochs=40_000, runId=caught.value.run_id)
    assert training.run_id == caught.value.run_id
    assert goes_on.status.epoch is not None
    assert goes_on.cancel()
    with pytest.raises(FitCancelledError):
        goes_on.result(timeout=_ENDS_WITHIN_S)


def interrupts_end_a_fit(spark: SparkSession, folder: str) -> None:
    """Those of Spark Connect: by the name of the run, by a tag of one's own, and of all that the session does."""
    ways: dict[str, Callable[[Training], Any]] = {
        "run": lambda training: spark.interruptTag(training.run_id),
        "tag": lambda training: spark.interruptTag("mine"),
        "all": lambda training: spark.interruptAll(),
    }
    for interrupt in ways.values():
        spark.addTag("mine")
        try:
            handle, training = _training(spark, folder)
        finally:
            spark.removeTag("mine")
        assert _ranks_are_gone_after(lambda: interrupt(training), folder)  # noqa: B023
        error = handle.exception(timeout=_ENDS_WITHIN_S)
        assert isinstance(error, ClusterError), error
        assert "was cancelled" in str(error)
        assert files_in(Path(folder) / "store") == []
    assert spark.range(3).count() == 3


def batches_of_a_stream_are_scored(spark: SparkSession, folder: str) -> None:
    """By a model that the function closes over: with Connect, it runs in a process of the server."""
    data = separable(spark, 40)
    data.write.parquet(f"{folder}/rows")
    model = TorchModel.fromModule(nn.Linear(3, 1), inputCols=["x"], example=data, storeUri=f"file://{folder}/store")

    def score(batch: DataFrame, number: int) -> None:
        model.transform(batch).write.mode("append").parquet(f"{folder}/scored")

    stream = spark.readStream.schema(data.schema).parquet(f"{folder}/rows")
    query = stream.writeStream.trigger(availableNow=True).foreachBatch(score).start()
    try:
        assert query.awaitTermination(100)
        assert query.exception() is None
    finally:
        query.stop()
    found, wanted = scores(spark.read.parquet(f"{folder}/scored")), scores(model.transform(data))
    assert found.keys() == wanted.keys() == set(range(40))
    assert list(found.values()) == pytest.approx([wanted[key] for key in found], abs=1e-6)


def _training(spark: SparkSession, folder: str, **changes: Any) -> tuple[FitHandle[Any], Training]:
    """A long fit of two ranks that train."""
    for path in Path(folder).glob("rank-*"):
        path.unlink()
    training = Training()
    settings: dict[str, Any] = {"epochs": 100_000, "storeUri": f"file://{folder}/store", **changes}
    estimator = linear(callbacks=[Named(folder)], listeners=[training], **settings)
    handle = estimator.fitAsync(separable(spark, 200))
    if not training.begun.wait(_TRAINS_WITHIN_S):
        handle.cancel()
        raise AssertionError(f"{handle} does not train")
    return handle, training


def _ranks_are_gone_after(act: Callable[[], Any], folder: str, within_s: float = _GONE_WITHIN_S) -> bool:
    ranks = [psutil.Process(int(path.read_text())) for path in Path(folder).glob("rank-*")]
    assert len(ranks) == 2
    act()
    return psutil.wait_procs(ranks, timeout=within_s)[1] == []
