"""A standalone cluster whose master and two workers are on hosts of their own, with cables that can be pulled."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.chaos.verdict import differences
from tests.cluster import hosts as apart
from tests.cluster.fits import FIT, Running, begin, on_cluster
from tests.cluster.standalone import Standalone, standalone

_WHY_NOT = apart.why_not()
_WHY_NOT_SLOW = _WHY_NOT or apart.why_not_slow()
pytestmark = [
    pytest.mark.spark,
    pytest.mark.chaos,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(_WHY_NOT), reason=f"no hosts apart here: {_WHY_NOT}"),
]
HEAD, LEFT, RIGHT = "head", "left", "right"
_STALL_S = 10.0
_START_S = 300.0  # of a session and its executors, on a machine that has other work
# How soon Spark itself takes an executor for lost that it does not hear of.
_SOON = {
    "spark.network.timeout": "20s",
    "spark.network.timeoutInterval": "5s",
    "spark.executor.heartbeatInterval": "3s",
}


@pytest.fixture(scope="module")
def shared(spark_home: Path) -> Iterator[Path]:
    """Seen by all hosts: not below /tmp, which each of them has for itself. With a SPARK_HOME, in `home`."""
    folder = Path(tempfile.mkdtemp(prefix="hvdspark-hosts-", dir="/var/tmp"))
    shutil.copytree(spark_home, folder / "home", symlinks=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def calm(shared: Path) -> dict[str, Tensor]:
    """The weights of the fit on one host."""
    running = begin(shared / "calm", shared, {"spark.master": "local[2]"}, shared / "home")
    try:
        assert running.result(500) == {"ok": True, "error": ""}
        return running.weights()
    finally:
        running.end()


@dataclass
class Apart:
    """A fit that trains on two hosts, with the driver on a third."""

    hosts: apart.Hosts
    cluster: Standalone
    fit: Running


@pytest.fixture
def train(shared: Path, request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[Callable[..., Apart]]:
    """Starts a fit on hosts apart. Keywords: of `hosts`, and Params of the estimator."""
    folder = shared / request.node.name
    folder.mkdir()
    with contextlib.ExitStack() as stack:

        def started(slow: str | None = None, delay_ms: float = 0.0, loss: float = 0.0, **params: Any) -> Apart:
            made = stack.enter_context(
                apart.hosts(folder, (HEAD, LEFT, RIGHT), slow=slow, delay_ms=delay_ms, loss=loss)
            )
            workers = [made.host(LEFT), made.host(RIGHT)]
            cluster = stack.enter_context(
                standalone(shared / "home", folder / "cluster", workers, cores=2, master=made.host(HEAD))
            )
            head = made.host(HEAD)
            settings = {**on_cluster(cluster.url, head.address), **_SOON}
            running = begin(
                folder / "fit", shared, settings, shared / "home", prefix=head.prefix, pause_s=0.1, **params
            )
            stack.callback(running.end)
            return Apart(made, cluster, running)

        yield started


def assert_named_in_time(fit: Running, since_s: float) -> None:
    """The first that was lost was named within the limit, and so was its host's other end."""
    lost = fit.events("RankLost")[0]
    assert lost["at"] - since_s <= _STALL_S + 5
    assert RIGHT in f"{lost['host']} {lost['cause']}"


def test_fits_train_as_on_one_host(train: Callable[..., Apart], calm: dict[str, Tensor]) -> None:
    fit = train().fit
    assert fit.result(500) == {"ok": True, "error": ""}
    assert differences(calm, fit.weights()) == []
    assert len(fit.events("generation")) == 1


@pytest.mark.parametrize("pulled_s", [5, 30])
def test_a_cable_that_is_pulled_for_a_while(
    train: Callable[..., Apart], calm: dict[str, Tensor], pulled_s: int
) -> None:
    made = train(maxRestarts=5, stallTimeout=_STALL_S)
    made.fit.wait_for_steps(0, FIT.steps + 3, wait_s=_START_S)
    pulled_at_s = time.monotonic()
    made.hosts.pull(RIGHT)
    time.sleep(pulled_s)
    made.hosts.plug(RIGHT)
    said = made.fit.result(500)
    print(made.fit.timeline(pulled_at_s))
    assert said == {"ok": True, "error": ""}, made.fit.output()[-5000:]
    assert differences(calm, made.fit.weights()) == []
    if pulled_s > _STALL_S + 5 or made.fit.events("RankLost"):
        assert_named_in_time(made.fit, pulled_at_s)


def test_a_cable_that_is_pulled_for_good(train: Callable[..., Apart], calm: dict[str, Tensor]) -> None:
    made = train(maxRestarts=5, stallTimeout=_STALL_S, minWorkers=1, maxWorkers=2)
    made.fit.wait_for_steps(0, FIT.steps + 3, wait_s=_START_S)
    pulled_at_s = time.monotonic()
    made.hosts.pull(RIGHT)
    said = made.fit.result(500)
    print(made.fit.timeline(pulled_at_s))
    assert said == {"ok": True, "error": ""}, made.fit.output()[-5000:]
    assert_named_in_time(made.fit, pulled_at_s)
    assert (made.fit.weights()["counts"] == 1).all()


def test_workers_that_reach_the_driver_but_not_each_other(train: Callable[..., Apart]) -> None:
    made = train(maxRestarts=1, stallTimeout=_STALL_S)
    made.fit.wait_for_steps(0, FIT.steps + 3, wait_s=_START_S)
    made.hosts.part((LEFT, RIGHT))
    parted_s = time.monotonic()
    (lost,) = made.fit.wait_for_events("RankLost", 1, _STALL_S + 5)
    assert lost["at"] - parted_s <= _STALL_S + 5
    named = f"{lost['host']} {lost['cause']}"
    assert LEFT in named
    assert RIGHT in named
    said = made.fit.result(500)
    print(made.fit.timeline(parted_s), said["error"], sep="\n")
    assert not said["ok"]
    assert LEFT in said["error"]
    assert RIGHT in said["error"]


@pytest.mark.skipif(bool(_WHY_NOT_SLOW), reason=f"no slow cables here: {_WHY_NOT_SLOW}")
def test_100_ms_and_a_lost_packet_in_a_hundred(train: Callable[..., Apart], calm: dict[str, Tensor]) -> None:
    began_s = time.monotonic()
    made = train(slow=RIGHT, delay_ms=100, loss=0.01, stallTimeout=_STALL_S)
    said = made.fit.result(900)  # a step has some thirty ways there and back
    print(made.fit.timeline(began_s), f"{time.monotonic() - began_s:.1f} s in all", sep="\n")
    assert said == {"ok": True, "error": ""}, made.fit.output()[-5000:]
    assert differences(calm, made.fit.weights()) == []
