"""`hvdspark.run` on a real session. What it has in common with other launchers is in tests/ranks/test_launchers.py."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.errors import (
    ClusterError,
    ConfigurationError,
    DataError,
    DependencyError,
    HvdSparkError,
    NotEnoughSlotsError,
    RankFailedError,
    StartTimeoutError,
)
from tests.ranks.launch_cases import describe_rank, raise_own_error

pytestmark = pytest.mark.spark


def environment_of_rank() -> dict[str, str]:
    return {name: os.environ.get(name, "unset") for name in ("MINE", "HOROVOD_RANK", "CUDA_VISIBLE_DEVICES")}


def test_the_environment_is_explicit(spark: SparkSession) -> None:
    results = hvdspark.run(environment_of_rank, num_workers=2, spark=spark, env={"MINE": "1"}, device="cpu")
    assert results == [{"MINE": "1", "HOROVOD_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""} for rank in range(2)]
    left = spark.range(3).mapInArrow(_environment_rows, "found boolean").collect()
    assert not any(row["found"] for row in left), "variables leaked into Spark's Python workers"


def _environment_rows(batches: Any) -> Any:
    import pyarrow as pa

    for _ in batches:
        yield pa.RecordBatch.from_pydict({"found": [any(name.startswith("HOROVOD_") for name in os.environ)]})


def test_too_few_slots_is_known_before_anything_starts(spark: SparkSession, nothing_left_behind: None) -> None:
    started = time.monotonic()
    with pytest.raises(NotEnoughSlotsError, match="99 ranks need 99.*has 3.*Hint: lower num_workers to 3"):
        hvdspark.run(describe_rank, ("hi",), num_workers=99, spark=spark)
    assert time.monotonic() - started < 10  # Spark itself asks for slots every 15 s


def test_slots_that_are_taken_end_in_a_start_timeout(
    spark: SparkSession, nothing_left_behind: None, tmp_path: Any
) -> None:
    marker = tmp_path / "release"

    def occupy(batches: Any) -> Any:
        while not marker.exists():
            time.sleep(0.05)
        yield from batches

    job = threading.Thread(target=lambda: spark.range(0, 2, 1, 2).mapInArrow(occupy, "id long").collect())
    job.start()
    try:
        deadline = time.monotonic() + 30
        while len(spark.sparkContext.statusTracker().getActiveStageIds()) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(StartTimeoutError, match="0 of 3 ranks started within 1 s.*Hint: other jobs"):
            hvdspark.run(describe_rank, ("hi",), num_workers=3, spark=spark, start_timeout_s=1)
    finally:
        marker.touch()
        job.join(timeout=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "not a positive number of ranks: 0"),
        ({"num_workers": 1.5}, "not a positive number of ranks: 1.5"),
        ({"num_workers": True}, "not a positive number of ranks: True"),
        ({"device": "tpu"}, "unknown device: 'tpu'"),
        ({"max_restarts": -1}, "negative number of restarts"),
    ],
)
def test_wrong_arguments(spark: SparkSession, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        hvdspark.run(describe_rank, ("hi",), spark=spark, **arguments)


def test_errors_of_the_function(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank each, started side by side."""
    (tmp_path / "only_here.py").write_text("def fn():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    cases: list[tuple[Callable[..., Any], type[HvdSparkError], str]] = [
        (raise_own_error, DataError, "labels are odd: 3 .in label.*Hint: make them even"),
        (
            importlib.import_module("only_here").fn,
            DependencyError,
            "cannot be imported on the executors.*only_here.*Hint.*addPyFile",
        ),
    ]

    def run(case: tuple[Callable[..., Any], type[HvdSparkError], str]) -> None:
        function, kind, message = case
        with pytest.raises(kind, match=message) as caught:
            hvdspark.run(function, num_workers=1, spark=spark, max_restarts=3)
        assert isinstance(caught.value.__cause__, RankFailedError)
        assert caught.value.__cause__.rank == 0

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, cases))


def test_context_outside_of_a_rank() -> None:
    with pytest.raises(ClusterError, match=r"there is no rank here.*Hint: call it inside"):
        hvdspark.context()


_REFUSED = """
import os
from pyspark.sql import SparkSession
import hvdspark
from hvdspark.errors import ClusterError

def attempt(**settings):
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for key, value in {"dynamicAllocation_enabled": "false", **settings}.items():
        builder = builder.config("spark." + key.replace("__", "-").replace("_", ".").replace("-", "_"), value)
    spark = builder.getOrCreate()
    try:
        print(hvdspark.run(lambda: "ran " + os.environ["HOROVOD_FUSION"], num_workers=1, spark=spark))
    except ClusterError as error:
        print("refused:", error)
    spark.stop()

attempt(dynamicAllocation_enabled="true")
attempt(ssl_enabled="true")
attempt(ssl_enabled="false", network_crypto_enabled="true", authenticate="true", authenticate_secret="s")
attempt(ssl_enabled="false", network_crypto_enabled="false", authenticate="false", executor_pyspark_memory="1g")
# Torch built for CUDA takes 3.2 GB of address space when it is imported.
attempt(executor_pyspark_memory="6g", ssl_enabled="true", hvdspark_ignoreSsl="true", executorEnv_HOROVOD__FUSION="7")
"""


@pytest.mark.slow
def test_sessions_that_cannot_work_are_refused(spark_home: Any) -> None:
    done = subprocess.run([sys.executable, "-c", _REFUSED], capture_output=True, text=True, timeout=100)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("refused", "["))]
    assert "dynamic allocation (SPARK-24942)" in lines[0], done.stderr[-2000:]
    assert "spark.executor.instances" in lines[0]
    assert "not encrypted" in lines[1]
    assert "spark.hvdspark.ignoreSsl=true" in lines[1]
    assert "spark.network.crypto.enabled" in lines[2]
    assert "spark.executor.pyspark.memory" in lines[3]
    assert lines[4] == "['ran 7']"
