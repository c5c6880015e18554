"""Fixtures for every test. Unit tests use none of the Spark ones and never start a JVM."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest
import torch  # begins with another seed in every process, so the first module that imports it would draw by luck

from tests.footprint import RUN_MARKER, Footprint, leaks_after_settling
from tests.mlflow_server import mlflow_server
from tests.sessions import AnySession, ConnectClient, ConnectServer, Here

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parent.parent

# One address for Spark, Horovod and everything else, whatever the machine's host name resolves to.
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
os.environ[RUN_MARKER] = uuid.uuid4().hex
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

# What a script starts in the background ignores SIGINT, and so does all that is started by it: tests interrupt both.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests draw is the same in every run, so that none passes or fails by luck. Another seed finds those that do.
SEED_VARIABLE = "HVDSPARK_TEST_SEED"
SEED = int(os.environ.get(SEED_VARIABLE, "0"))

# Every test has a limit of its own; a deadline for each example fails on a machine that is busy for a moment.
hypothesis.settings.register_profile("hvdspark", deadline=None, derandomize=SEED_VARIABLE not in os.environ)
hypothesis.settings.load_profile("hvdspark")


def pytest_collection() -> None:
    gc.disable()  # there is no garbage among the modules that are imported now


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(getattr(getattr(item, "obj", None), "is_hypothesis_test", False) for item in session.items):
        _first_hypothesis()
    # What is there now stays until the end. Without it, a collection looks at a few thousand objects, not at a million.
    gc.freeze()
    gc.enable()


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(hypothesis.strategies.none())
def _first_hypothesis(_: None) -> None:
    """Has hypothesis make its generator, for which it must find a referrer: it finds none among frozen objects."""


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, pytest.Module):
        _seed()  # for what the module makes while it is imported


def pytest_runtest_setup(item: pytest.Item) -> None:
    _seed()


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    # Not torch.manual_seed: it formats the stack for each kind of accelerator, milliseconds every time.
    torch.default_generator.manual_seed(SEED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # One process can hold one SparkContext, and `local_cluster` stops the `spark` session: so its tests come last.
    items.sort(key=lambda item: "local_cluster" in getattr(item, "fixturenames", ()) or _kind(item) == "local-cluster")


def _kind(item: pytest.Item) -> object:
    """Of the session that a test of `any_session` runs in."""
    return item.callspec.params.get("any_session") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session")
def spark(spark_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """One session of three task slots for all tests marked `spark`."""
    session = _start("local[3]", tmp_path_factory.mktemp("spark"), {})
    yield session
    session.stop()


@pytest.fixture(scope="session")
def local_cluster(spark_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """Two executors of one slot each, in processes of their own: for tests that kill, shrink or isolate executors.

    Stops the `spark` session. Tests that use it run after all others, whatever their file is called.
    """
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()
    all_registered = {"spark.scheduler.minRegisteredResourcesRatio": "1.0"}
    session = _start("local-cluster[2,1,1024]", tmp_path_factory.mktemp("cluster"), all_registered)
    # Waits for both executors. A barrier job would fail at once without them and try again only 15 s later.
    session.sparkContext.parallelize([0, 1], 2).count()
    yield session
    session.stop()


# What runs in the local session is what most tests are about.
@pytest.fixture(
    params=[
        pytest.param("local", marks=pytest.mark.slow),
        "connect",
        pytest.param("local-cluster", marks=pytest.mark.slow),
    ]
)
def any_session(request: pytest.FixtureRequest) -> AnySession:
    """A session of each kind, one after the other. What is run in it is a function of a module of tests."""
    if request.param == "connect":
        child: ConnectClient = request.getfixturevalue("connect")
        return child
    return Here(request.getfixturevalue({"local": "spark", "local-cluster": "local_cluster"}[request.param]))


@pytest.fixture(scope="session")
def connect(spark_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConnectClient]:
    """A Spark Connect session of two task slots, in a process of its own that has no JVM."""
    yield from _connected("local[2]", tmp_path_factory.mktemp("connect"))


@pytest.fixture(scope="session")
def connect_cluster(spark_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConnectClient]:
    """As `connect`, of a server with two executors of one slot each."""
    yield from _connected("local-cluster[2,1,1024]", tmp_path_factory.mktemp("connect-cluster"))


def _connected(master: str, scratch: Path) -> Iterator[ConnectClient]:
    server = ConnectServer({"spark.master": master, **_settings(scratch, "1g")})
    client = ConnectClient(server)
    yield client
    client.close()
    server.close()


@pytest.fixture(scope="session")
def spark_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed pyspark under a second name: local-cluster writes into `$SPARK_HOME/work`."""
    specification = importlib.util.find_spec("pyspark")
    if specification is None or specification.origin is None:
        pytest.fail("pyspark is not installed. Hint: make setup")
    home = tmp_path_factory.mktemp("spark-home")
    for entry in Path(specification.origin).parent.iterdir():
        # Without `python`, where Spark's archives of pyspark and py4j lie: a worker reads anew for each task what is in
        # them (importlib.invalidate_caches), which is most of what small tasks cost. It has both installed.
        if entry.name != "python":
            (home / entry.name).symlink_to(entry)
    # The second compiler of a JVM pays off after minutes of the same work, which no test does. Without it, sessions,
    # executors and the drivers of other processes start with half of the CPU. Nor does it pay to look for garbage in
    # several threads, beside everything else.
    for_short_lives = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    options = "".join(f"spark.{role}.extraJavaOptions {for_short_lives}\n" for role in ("driver", "executor"))
    (home / "conf").mkdir()
    (home / "conf" / "spark-defaults.conf").write_text(options)
    os.environ["SPARK_HOME"] = str(home)
    # Functions of test modules are pickled by reference, so the Python workers must be able to import `tests`.
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PYSPARK_PYTHON"] = sys.executable
    return home


def _start(master: str, scratch: Path, extra: dict[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    settings = {**_settings(scratch, "2g"), **extra}
    builder = SparkSession.builder.master(master).appName("hvdspark tests")
    session = builder.config(map=settings).getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _settings(scratch: Path, memory: str) -> dict[str, str]:
    return {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": memory,
        "spark.ui.enabled": "false",
        "spark.python.daemon.module": "tests.python_daemon",
        # What Spark says of a stage is always old here, as it is elsewhere when tasks start at an unlucky moment.
        "spark.ui.liveUpdate.period": "1h",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.local.dir": str(scratch / "local"),
    }


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one real MLflow server for all tests that want one."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.uri


@pytest.fixture
def store_uri(tmp_path: Path) -> str:
    """A local store of this test's own."""
    return (tmp_path / "store").as_uri()


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """`real_data("adult")` is that folder of the real data sets; the test is skipped where there is none."""
    directory = Path(os.environ.get("HVDSPARK_TEST_DATA", ROOT.parent / "shared" / "data"))

    def folder(name: str) -> Path:
        path = directory / name
        if not path.is_dir():
            pytest.skip(f"no real data in {path}; HVDSPARK_TEST_DATA names its parent directory")
        return path

    return folder


@pytest.fixture
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test when, 5 s after it ended, something is left: a process, a listening port, a thread, an open file
    or a change of os.environ."""
    for session in ("spark", "local_cluster"):  # what the session itself holds is not the test's
        if session in request.fixturenames:
            request.getfixturevalue(session).range(2).mapInArrow(lambda batches: batches, "id long").collect()
    before = Footprint.take()
    yield
    leaks = leaks_after_settling(before)
    assert not leaks, "left behind:\n" + "\n".join(leaks)
