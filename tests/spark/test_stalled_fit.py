"""A fit of which a task is frozen goes on, and its summary says what that took."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from pyspark.sql import SparkSession

from hvdspark.events import FitEnded, FitListener, GoodputMeasured, RankLost, StepsDone
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.listeners import Seen
from tests.spark.toys import linear, separable

pytestmark = [pytest.mark.spark, pytest.mark.slow]

STALL_S = 5.0


class Slowly(Callback):
    """Leaves the pid of each rank's task, and takes its time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_batch_end(self, state: TrainState) -> None:
        (self._folder / f"task-of-{state.rank}").write_text(str(os.getppid()))
        time.sleep(0.05)


class Freeze(FitListener):
    """Stops the task of a rank at the first step of the fit that is heard of."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = folder / f"task-of-{rank}"
        self.stopped_s = 0.0
        self.pid = 0
        self._once = threading.Lock()

    def on_steps_done(self, event: StepsDone) -> None:
        if event.step > 5 and self._file.exists() and self._once.acquire(blocking=False):
            self.pid = int(self._file.read_text())
            os.kill(self.pid, signal.SIGSTOP)
            self.stopped_s = time.monotonic()


class LostAt(FitListener):
    def __init__(self) -> None:
        self.lost_s = 0.0

    def on_rank_lost(self, event: RankLost) -> None:
        self.lost_s = time.monotonic()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_frozen_task_is_named_and_the_fit_goes_on(
    local_cluster: SparkSession, tmp_path: Path, store_uri: str, rank: int
) -> None:
    seen, freeze, lost = Seen(), Freeze(tmp_path, rank), LostAt()
    settings = {"storeUri": store_uri, "stallTimeout": STALL_S, "batchSize": 8, "callbacks": [Slowly(tmp_path)]}
    estimator = linear(**settings, listeners=[seen, freeze, lost])
    summary = estimator.fit(separable(local_cluster)).summary
    assert freeze.pid, "it was stopped"
    named = seen.of(RankLost)
    assert [(event.rank, event.kind) for event in named] == [(rank, "stalled")]
    assert lost.lost_s - freeze.stopped_s < STALL_S + 5
    assert not psutil.pid_exists(freeze.pid) or psutil.Process(freeze.pid).status() != psutil.STATUS_STOPPED
    assert summary.restarts == 1
    assert len(summary.recoverySeconds) == 1
    assert summary.goodput is not None
    assert 0 < summary.goodput < 1
    measured = seen.of(GoodputMeasured)
    assert [event.restarts for event in measured] == [1]
    assert isinstance(seen.events[-1], FitEnded)
    assert "1 restart, next step after" in repr(summary)
