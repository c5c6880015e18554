"""`hvdspark.run` on a real session: real barrier stage, real Horovod, real processes that die."""

from __future__ import annotations

import ctypes
import importlib
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.errors import (
    ClusterError,
    ConfigurationError,
    DataError,
    DependencyError,
    NotEnoughSlotsError,
    RankFailedError,
    StartTimeoutError,
)

pytestmark = pytest.mark.spark

ERROR_WITHIN_S = 10.0


def describe_rank(text: str, punctuation: str = "") -> dict[str, Any]:
    import horovod.torch as hvd
    import torch

    context = hvdspark.context()
    context.report({"event": "hello", "text": text})
    total = hvd.allreduce(torch.tensor([float(context.rank + 1)]), op=hvd.Sum, name="total")
    return {
        "context": (context.rank, context.size, context.local_rank, context.local_size),
        "horovod": (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()),
        "total": total.item(),
        "text": text + punctuation,
        "device": context.device,
        "generation": context.generation,
        "store": context.store.uri if context.store else None,
        "threads": torch.get_num_threads(),
        "stdin": sys.stdin.read(),
        "pid": os.getpid(),
    }


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_know_their_place(spark: SparkSession, nothing_left_behind: None, size: int) -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    results = hvdspark.run(
        describe_rank,
        ("hi",),
        {"punctuation": "!"},
        num_workers=size,
        spark=spark,
        store_uri="/tmp/x",
        on_event=events.put,
    )
    assert [result["context"] for result in results] == [(rank, size, rank, size) for rank in range(size)]
    assert all(result["horovod"] == result["context"] for result in results)
    assert {result["total"] for result in results} == {size * (size + 1) / 2}
    assert {result["text"] for result in results} == {"hi!"}
    assert {result["device"] for result in results} == {"cpu"}
    assert {result["generation"] for result in results} == {0}
    assert {result["store"] for result in results} == {"file:///tmp/x"}
    assert {result["stdin"] for result in results} == {""}
    assert len({result["pid"] for result in results}) == size
    reported = [events.get(timeout=1) for _ in range(size)]
    assert sorted(event["rank"] for event in reported) == list(range(size))


def die(how: str, victim: int) -> None:
    import horovod.torch as hvd
    import torch

    for step in range(1000):
        hvd.allreduce(torch.ones(100), name="step")
        if step == 20 and hvdspark.context().rank == victim:
            print("last words", flush=True)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "segfault":
                ctypes.string_at(0)
            elif how == "raise":
                raise ValueError("the user's own mistake")
            elif how == "exit":
                sys.exit(3)
            elif how == "memory":
                resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
                torch.ones(1 << 34)


@pytest.mark.parametrize(
    ("how", "kind", "cause"),
    [
        ("kill", "signal", "killed by SIGKILL"),
        ("segfault", "signal", "killed by SIGSEGV"),
        ("raise", "exception", "ValueError: the user's own mistake"),
        ("exit", "exit", "exited with code 3"),
        ("memory", "exception", "can't allocate memory"),
    ],
)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_is_named(
    spark: SparkSession, nothing_left_behind: None, how: str, kind: str, cause: str, victim: int
) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailedError, match=cause) as caught:
        hvdspark.run(die, (how, victim), num_workers=2, spark=spark)
    # The limit is for the time from the failure; a launch takes a few seconds of it.
    assert time.monotonic() - started < ERROR_WITHIN_S
    error = caught.value
    assert (error.rank, error.kind) == (victim, kind)
    assert error.host in str(error)
    assert "last words" in error.tail
    if how == "raise":
        assert "in die" in error.traceback_text


def test_the_next_run_in_the_session_works(spark: SparkSession, nothing_left_behind: None) -> None:
    with pytest.raises(RankFailedError):
        hvdspark.run(die, ("kill", 1), num_workers=2, spark=spark)
    results = hvdspark.run(describe_rank, ("again",), num_workers=2, spark=spark)
    assert [result["total"] for result in results] == [3.0, 3.0]


def fork_and_die() -> None:
    # A process that the rank forks holds its pipes open; it must neither delay the error nor survive.
    if os.fork() == 0:
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_rank_started_goes_with_it(spark: SparkSession, nothing_left_behind: None) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailedError, match="SIGKILL"):
        hvdspark.run(fork_and_die, num_workers=2, spark=spark)
    assert time.monotonic() - started < ERROR_WITHIN_S


def start_a_session_of_its_own(fatal: bool) -> int:
    started = subprocess.Popen(["sleep", "600"], start_new_session=True)
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return started.pid


def test_not_even_what_left_its_process_group_stays(spark: SparkSession, nothing_left_behind: None) -> None:
    started = time.monotonic()
    pids = hvdspark.run(start_a_session_of_its_own, (False,), num_workers=2, spark=spark)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(RankFailedError, match="SIGKILL"):
        hvdspark.run(start_a_session_of_its_own, (True,), num_workers=2, spark=spark)
    assert time.monotonic() - started < 2 * ERROR_WITHIN_S


class UnpicklableError(DataError):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def raise_unpicklable_error() -> None:
    raise UnpicklableError("still readable")


def test_an_error_that_cannot_be_pickled_is_still_readable(spark: SparkSession) -> None:
    with pytest.raises(RankFailedError, match="still readable"):
        hvdspark.run(raise_unpicklable_error, num_workers=1, spark=spark)


def test_code_that_the_executors_do_not_have(
    spark: SparkSession, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def fn():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    only_here = importlib.import_module("only_here")
    with pytest.raises(DependencyError, match="cannot be imported on the executors.*only_here.*Hint.*addPyFile"):
        hvdspark.run(only_here.fn, num_workers=1, spark=spark)


def return_early_or_wait(first: int) -> None:
    import horovod.torch as hvd
    import torch

    if hvdspark.context().rank != first:
        hvd.allreduce(torch.ones(1), name="alone")


def test_a_rank_that_returned_early_is_named(spark: SparkSession) -> None:
    with pytest.raises(RankFailedError, match=r"rank 1 .* lost the others: ranks \[0\] had already returned"):
        hvdspark.run(return_early_or_wait, (0,), num_workers=2, spark=spark)


def raise_own_error() -> None:
    raise DataError("labels are odd", value=3, where="label", hint="make them even")


def test_an_error_of_ours_arrives_as_itself(spark: SparkSession) -> None:
    with pytest.raises(DataError, match="labels are odd: 3 .in label.*Hint: make them even") as caught:
        hvdspark.run(raise_own_error, num_workers=1, spark=spark)
    assert isinstance(caught.value.__cause__, RankFailedError)
    assert caught.value.__cause__.rank == 0


def unpicklable() -> Any:
    return threading.Lock()


def test_a_result_that_cannot_be_pickled_is_an_error(spark: SparkSession) -> None:
    with pytest.raises(RankFailedError, match="pickle"):
        hvdspark.run(unpicklable, num_workers=1, spark=spark)


def test_a_big_result_arrives_whole(spark: SparkSession) -> None:
    (result,) = hvdspark.run(lambda: bytes(range(256)) * 20_000, num_workers=1, spark=spark)
    assert result == bytes(range(256)) * 20_000


def kill_my_parent_and_wait() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def test_a_rank_dies_with_its_task(spark: SparkSession, nothing_left_behind: None) -> None:
    started = time.monotonic()
    with pytest.raises(RankFailedError) as caught:
        hvdspark.run(kill_my_parent_and_wait, num_workers=2, spark=spark)
    assert caught.value.kind == "executor_lost"
    assert time.monotonic() - started < ERROR_WITHIN_S


def die_in_generation(fatal: int) -> int:
    generation = hvdspark.context().generation
    if generation < fatal and hvdspark.context().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    import horovod.torch as hvd
    import torch

    hvd.allreduce(torch.ones(1), name="alive")
    return generation


def test_restarts_are_bounded_and_counted(spark: SparkSession, nothing_left_behind: None) -> None:
    assert hvdspark.run(die_in_generation, (1,), num_workers=2, spark=spark, max_restarts=2) == [1, 1]
    with pytest.raises(RankFailedError, match="SIGKILL"):
        hvdspark.run(die_in_generation, (9,), num_workers=2, spark=spark, max_restarts=1)


def test_an_exception_is_not_retried(spark: SparkSession, tmp_path: Any) -> None:
    def count() -> None:
        with open(tmp_path / "calls", "a") as calls:
            calls.write("x")
        raise ValueError("always")

    with pytest.raises(RankFailedError, match="always"):
        hvdspark.run(count, num_workers=1, spark=spark, max_restarts=3)
    assert (tmp_path / "calls").read_text() == "x"


def test_two_gangs_from_two_threads(spark: SparkSession, nothing_left_behind: None) -> None:
    results: dict[str, Any] = {}

    def launch(name: str) -> None:
        results[name] = hvdspark.run(describe_rank, (name,), num_workers=1)

    threads = [threading.Thread(target=launch, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert {name: result[0]["text"] for name, result in results.items()} == {"a": "a", "b": "b"}


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
    with pytest.raises(NotEnoughSlotsError, match="99 ranks need 99.*has 3.*Hint: lower numWorkers to 3"):
        hvdspark.run(describe_rank, ("hi",), num_workers=99, spark=spark)
    assert time.monotonic() - started < 1


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
        with pytest.raises(StartTimeoutError, match="0 of 3 ranks started within 3 s.*Hint: other jobs"):
            hvdspark.run(describe_rank, ("hi",), num_workers=3, spark=spark, start_timeout_s=3)
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


def test_cuda_without_a_gpu(spark: SparkSession) -> None:
    with pytest.raises(ClusterError, match="no GPU for this rank.*Hint"):
        hvdspark.run(describe_rank, ("hi",), num_workers=1, spark=spark, device="cuda")


def test_context_outside_of_a_rank() -> None:
    with pytest.raises(ClusterError, match=r"there is no rank here.*Hint: call it inside"):
        hvdspark.context()


_REFUSED = """
import sys
from pyspark.sql import SparkSession
import hvdspark
from hvdspark.errors import ClusterError

def attempt(**settings):
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    for key, value in settings.items():
        builder = builder.config("spark." + key.replace("_", "."), value)
    spark = builder.getOrCreate()
    try:
        print(hvdspark.run(lambda: "ran", num_workers=1, spark=spark))
    except ClusterError as error:
        print("refused:", error)
    spark.stop()

attempt(dynamicAllocation_enabled="true")
attempt(dynamicAllocation_enabled="false", ssl_enabled="true")
attempt(dynamicAllocation_enabled="false", ssl_enabled="true", hvdspark_ignoreSsl="true")
"""


def test_sessions_that_cannot_work_are_refused(spark_home: Any) -> None:
    done = subprocess.run([sys.executable, "-c", _REFUSED], capture_output=True, text=True, timeout=100)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("refused", "["))]
    assert "dynamic allocation (SPARK-24942)" in lines[0], done.stderr[-2000:]
    assert "spark.executor.instances" in lines[0]
    assert "not encrypted" in lines[1]
    assert "spark.hvdspark.ignoreSsl=true" in lines[1]
    assert lines[2] == "['ran']"


_KILLED_DRIVER = """
import os, signal, sys, threading, time
from pyspark.sql import SparkSession
import hvdspark

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()

def wait():
    context = hvdspark.context()
    context.report({"event": "pid", "pid": os.getpid()})
    time.sleep(600)

def tell(event):
    print("rank", event["pid"], flush=True)

hvdspark.run(wait, num_workers=2, spark=spark, on_event=tell)
"""


def test_ranks_do_not_outlive_a_killed_driver(spark_home: Any) -> None:
    driver = subprocess.Popen([sys.executable, "-c", _KILLED_DRIVER], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pids = []
    for line in driver.stdout:
        if line.startswith("rank"):
            pids.append(int(line.split()[1]))
        if len(pids) == 2:
            break
    ranks = [psutil.Process(pid) for pid in pids]
    driver.kill()
    driver.wait(timeout=10)
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert not alive
