"""Executors and drivers of real Spark sessions, killed while `TorchEstimator` fits."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from tests.chaos.verdict import differences
from tests.cluster.fits import FIT, Running, begin

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(1200)]
_CLUSTER = {"spark.master": "local-cluster[2,1,1024]"}
_OK = {"ok": True, "error": ""}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def calm(shared: Path, spark_home: Path) -> Iterator[dict[str, Tensor]]:
    """The weights of the fit that nobody disturbs."""
    running = begin(shared / "calm", shared, {"spark.master": "local[2]"}, spark_home)
    try:
        assert running.result(400) == _OK
        yield running.weights()
    finally:
        running.end()


def executors_of(running: Running) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(running.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it is over
            if "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_executors_that_are_killed_one_and_all(
    shared: Path, calm: dict[str, Tensor], spark_home: Path, nothing_left_behind: None
) -> None:
    struck = begin(shared / "executors", shared, _CLUSTER, spark_home, pause_s=0.1, maxRestarts=5)
    try:
        struck.wait_for_steps(0, FIT.steps + 3, wait_s=300)
        os.kill(executors_of(struck)[0].pid, signal.SIGKILL)
        struck.wait_for_steps(1, 2, wait_s=60)
        for executor in executors_of(struck):
            os.kill(executor.pid, signal.SIGKILL)
        assert struck.result(400) == _OK
    finally:
        struck.end()
    assert len(struck.events("generation")) == 3
    assert differences(calm, struck.weights()) == []


def test_a_driver_that_is_killed_goes_on_under_the_same_run_id(
    shared: Path, calm: dict[str, Tensor], spark_home: Path, nothing_left_behind: None
) -> None:
    params = {"maxRestarts": 5, "runId": "named", "checkpointIntervalSteps": 5}
    first = begin(shared / "first", shared, {"spark.master": "local[2]"}, spark_home, pause_s=0.1, **params)
    try:
        first.wait_for_steps(0, FIT.steps + 8, wait_s=300)
        os.kill(first.process.pid, signal.SIGKILL)  # and nobody else
        first.process.wait(timeout=10)
    except BaseException:
        first.end()
        raise
    again = begin(shared / "again", shared, {"spark.master": "local[2]"}, spark_home, **params)
    try:
        assert again.result(400) == _OK
    finally:
        again.end()
    steps = sum(again.steps(event["generation"]) for event in again.events("generation"))
    assert steps <= FIT.epochs * FIT.steps - FIT.steps, "it began anew"
    assert differences(calm, again.weights()) == []
