"""No unreachable port, slow import or setting decides over a healthy gang."""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pyspark import SparkFiles
from pyspark.sql import SparkSession

import hvdspark
from hvdspark import launch
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassifier, TorchEstimator
from hvdspark.launch import generation
from hvdspark.launch.channel import ChannelListener
from hvdspark.launch.start_watch import StartWatch
from tests.ranks.launch_cases import SLOW
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark


class Unreachable(ChannelListener):
    """Tells the tasks a port at which nobody listens."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self.port = closed.getsockname()[1]


class Noting(StartWatch):
    """Notes what Spark says about the tasks."""

    answers: ClassVar[list[bool | None]] = []

    def begin(
        self, timeout_s: float, has_begun: Callable[[], bool | None], cancel: Callable[[], Any], *rest: Any
    ) -> None:
        def noted() -> bool | None:
            self.answers.append(has_begun())
            return self.answers[-1]

        super().begin(timeout_s, noted, cancel, *rest)


def look_around(file: str, variable: Any) -> dict[str, Any]:
    return {
        "file": Path(SparkFiles.get(file)).read_text(),
        "variable": variable.value,
        "module": importlib.import_module("only_on_that_path").value,
        "threads": __import__("torch").get_num_threads(),
        "timeout": os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"],
    }


@pytest.mark.slow  # with a channel it is in tests/ranks/test_stalls.py
def test_a_slow_rank_is_waited_for_without_a_channel(
    spark: SparkSession, nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # One rank needs longer for its imports than Gloo waits, and no task reaches the driver, which learns from Spark
    # that they run. What a worker of Spark has is there, too.
    monkeypatch.setattr(generation, "ChannelListener", Unreachable)
    monkeypatch.setattr(generation, "StartWatch", Noting)
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    (tmp_path / "only_on_that_path.py").write_text("value = 7")
    (tmp_path / "added.txt").write_text("content")
    spark.sparkContext.addFile(str(tmp_path / "added.txt"))
    environment = {
        "PYTHONPATH": str(tmp_path),
        "FIRST_ONE": str(tmp_path / "first"),
        "SLOW_S": "4",
        "OMP_NUM_THREADS": "2,1",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "3",
    }
    variable = spark.sparkContext.broadcast({"a": [1, 2]})
    results = hvdspark.run(look_around, ("added.txt", variable), num_workers=2, spark=spark, env=environment)
    variable.destroy()
    expected = {"file": "content", "variable": {"a": [1, 2]}, "module": 7, "threads": 2, "timeout": "3"}
    assert results == [expected, expected]
    assert Noting.answers[-1]


def test_variables_of_a_rank_itself_are_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match="HOROVOD_RANK.*env"):
        hvdspark.run(time.time, spark=spark, env={"HOROVOD_RANK": "0"})


class HandedOnError(Exception):
    pass


def test_estimators_hand_their_env_on(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, env: dict[str, str], **others: Any) -> Any:
        raise HandedOnError(env)

    monkeypatch.setattr(launch, "run", run)
    environment = {"HOROVOD_TIMELINE": "/tmp/timeline.json"}
    linear(env=environment, storeUri=(tmp_path / "s").as_uri()).save(str(tmp_path / "saved"))
    with pytest.raises(HandedOnError, match="timeline.json"):
        TorchEstimator.load(str(tmp_path / "saved")).fit(separable(spark))
    with pytest.raises(ConfigurationError, match="HOROVOD_SIZE"):
        CTRClassifier(env={"HOROVOD_SIZE": "3"})
    assert CTRClassifier(env=environment).getEnv() == environment
