"""Executors and drivers of real Spark sessions, killed while `TorchEstimator` fits."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from tests.chaos.drawn import ALL_TASKS, DRIVER, STEP, TASK, Fault
from tests.chaos.strikes import Attempt, Striker
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


def executors_of(driver: int) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it is over
                if "CoarseGrainedExecutorBackend" in " ".join(process.cmdline()):
                    found.append(process)
    return found


class SessionAttempt(Attempt):
    """A driver with a session, whose tasks are killed with their executors."""

    def tasks(self) -> list[psutil.Process]:
        return executors_of(self.pid)


def drawn_faults(seed: int, count: int) -> list[Fault]:
    """Deaths of executors, of all of them at once, and of drivers, at any moment of a step; the same for each seed."""
    drawn = random.Random(f"hvdspark sessions {seed}")
    return [
        Fault(
            when=STEP,
            after=drawn.randint(1, 12),
            delay_ms=drawn.uniform(0, 100),
            victim=drawn.choices((TASK, ALL_TASKS, DRIVER), (3, 1, 1))[0],
            index=drawn.randrange(2),
            signal=drawn.choices(("KILL", "TERM"), (4, 1))[0],
            damage=None,
        )
        for _ in range(count)
    ]


def test_executors_that_are_killed_one_and_all(
    shared: Path, calm: dict[str, Tensor], spark_home: Path, nothing_left_behind: None
) -> None:
    struck = begin(shared / "executors", shared, _CLUSTER, spark_home, pause_s=0.1, maxRestarts=5)
    try:
        struck.wait_for_steps(0, FIT.steps + 3, wait_s=300)
        os.kill(executors_of(struck.process.pid)[0].pid, signal.SIGKILL)
        struck.wait_for_steps(1, 2, wait_s=60)
        for executor in executors_of(struck.process.pid):
            os.kill(executor.pid, signal.SIGKILL)
        assert struck.result(400) == _OK
    finally:
        struck.end()
    assert len(struck.events("generation")) == 3
    assert differences(calm, struck.weights()) == []


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_deaths_of_executors_and_drivers_that_a_seed_draws(
    seed: int, shared: Path, calm: dict[str, Tensor], spark_home: Path, nothing_left_behind: None
) -> None:
    drivers: list[Running] = []

    def begin_again(number: int) -> Attempt:
        params = {"maxRestarts": 5, "runId": f"seed-{seed}", "checkpointIntervalSteps": 5}
        drivers.append(begin(shared / f"seed-{seed}-{number}", shared, _CLUSTER, spark_home, pause_s=0.1, **params))
        return SessionAttempt(drivers[-1].process.pid, drivers[-1].folder, number)

    try:
        striker = Striker(shared / f"store/runs/seed-{seed}", begin_again, still_s=120.0)
        striker.strike(drawn_faults(seed, 4))
        assert drivers[-1].result(60) == _OK
    finally:
        for driver in drivers:
            driver.end()
    for blow in striker.blows:
        print(blow.plain())
    assert sum(blow.generation >= 0 for blow in striker.blows) >= 3
    assert differences(calm, drivers[-1].weights()) == []


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
