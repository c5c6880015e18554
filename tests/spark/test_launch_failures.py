"""How ranks fail: named within seconds, with nothing left behind, and the session goes on."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.errors import DataError, DependencyError, HvdSparkError, RankFailedError
from hvdspark.launch import supervisor
from hvdspark.launch.protocol import Launcher, LaunchSpec

pytestmark = pytest.mark.spark

ERROR_WITHIN_S = 10.0


def seconds_since(marker: Path) -> float:
    """Time since a rank touched the file, which it does just before it dies."""
    return time.time() - marker.stat().st_mtime


def die(how: str, victim: int, marker: Path) -> None:
    import horovod.torch as hvd
    import torch

    for step in range(1000):
        hvd.allreduce(torch.ones(100), name="step")
        if step == 20 and hvdspark.context().rank == victim:
            print("last words", flush=True)
            marker.touch()
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
    spark: SparkSession, nothing_left_behind: None, tmp_path: Path, how: str, kind: str, cause: str, victim: int
) -> None:
    marker = tmp_path / "died"
    with pytest.raises(RankFailedError, match=cause) as caught:
        hvdspark.run(die, (how, victim, marker), num_workers=2, spark=spark)
    assert seconds_since(marker) < ERROR_WITHIN_S
    error = caught.value
    assert (error.rank, error.kind) == (victim, kind)
    assert error.host in str(error)
    assert "last words" in error.tail
    if how == "raise":
        assert "in die" in error.traceback_text


def fork_and_die(marker: Path) -> None:
    # A process that the rank forks holds its pipes open; it must neither delay the error nor survive.
    if os.fork() == 0:
        time.sleep(600)
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_rank_started_goes_with_it(spark: SparkSession, nothing_left_behind: None, tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match="SIGKILL"):
        hvdspark.run(fork_and_die, (tmp_path / "died",), num_workers=2, spark=spark)
    assert seconds_since(tmp_path / "died") < ERROR_WITHIN_S


def start_a_session_of_its_own(marker: Path, fatal: bool) -> int:
    started = subprocess.Popen(["sleep", "600"], start_new_session=True)
    marker.touch()
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return started.pid


def test_not_even_what_left_its_process_group_stays_and_the_next_run_works(
    spark: SparkSession, nothing_left_behind: None, tmp_path: Path
) -> None:
    marker = tmp_path / "ended"
    with pytest.raises(RankFailedError, match="SIGKILL"):
        hvdspark.run(start_a_session_of_its_own, (marker, True), num_workers=2, spark=spark)
    assert seconds_since(marker) < ERROR_WITHIN_S
    pids = hvdspark.run(start_a_session_of_its_own, (marker, False), num_workers=2, spark=spark)
    assert seconds_since(marker) < ERROR_WITHIN_S
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


class UnpicklableError(DataError):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def raise_unpicklable_error() -> None:
    raise UnpicklableError("still readable")


def raise_own_error() -> None:
    raise DataError("labels are odd", value=3, where="label", hint="make them even")


def return_what_cannot_be_pickled() -> Any:
    return threading.Lock()


def raise_after_counting(calls: Path) -> None:
    with calls.open("a") as file:
        file.write("x")
    raise ValueError("always")


def test_errors_of_the_function(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank each, started side by side."""
    (tmp_path / "only_here.py").write_text("def fn():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = tmp_path / "calls"
    cases: list[tuple[Callable[..., Any], tuple[Any, ...], type[HvdSparkError], str]] = [
        (raise_unpicklable_error, (), RankFailedError, "still readable"),
        (raise_own_error, (), DataError, "labels are odd: 3 .in label.*Hint: make them even"),
        (return_what_cannot_be_pickled, (), RankFailedError, "pickle"),
        (raise_after_counting, (calls,), RankFailedError, "always"),
        (
            importlib.import_module("only_here").fn,
            (),
            DependencyError,
            "cannot be imported on the executors.*only_here.*Hint.*addPyFile",
        ),
    ]

    def run(case: tuple[Callable[..., Any], tuple[Any, ...], type[HvdSparkError], str]) -> None:
        function, arguments, kind, message = case
        with pytest.raises(kind, match=message) as caught:
            hvdspark.run(function, arguments, num_workers=1, spark=spark, max_restarts=3)
        if kind is not RankFailedError:
            assert isinstance(caught.value.__cause__, RankFailedError)
            assert caught.value.__cause__.rank == 0

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, cases))
    assert calls.read_text() == "x", "exceptions are not retried"


def return_early_or_wait(first: int) -> None:
    import horovod.torch as hvd
    import torch

    if hvdspark.context().rank != first:
        hvd.allreduce(torch.ones(1), name="alone")


def test_a_rank_that_returned_early_is_named(spark: SparkSession) -> None:
    with pytest.raises(RankFailedError, match=r"rank 1 .* lost the others: ranks \[0\] had already returned"):
        hvdspark.run(return_early_or_wait, (0,), num_workers=2, spark=spark)


def kill_my_parent_and_wait(marker: Path) -> None:
    marker.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def test_a_rank_dies_with_its_task(spark: SparkSession, nothing_left_behind: None, tmp_path: Path) -> None:
    with pytest.raises(RankFailedError) as caught:
        hvdspark.run(kill_my_parent_and_wait, (tmp_path / "died",), num_workers=2, spark=spark)
    assert caught.value.kind == "executor_lost"
    assert seconds_since(tmp_path / "died") < ERROR_WITHIN_S


def die_in_generation(fatal: int) -> int:
    generation = hvdspark.context().generation
    if generation < fatal and hvdspark.context().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    import horovod.torch as hvd
    import torch

    hvd.allreduce(torch.ones(1), name="alive")
    return generation


def test_a_restart_is_counted(spark: SparkSession, nothing_left_behind: None) -> None:
    assert hvdspark.run(die_in_generation, (1,), num_workers=2, spark=spark, max_restarts=2) == [1, 1]


@pytest.mark.parametrize(
    ("kind", "generations"), [("signal", 3), ("executor_lost", 3), ("peer_lost", 3), ("exception", 1), ("exit", 1)]
)
def test_restarts_are_bounded(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, kind: str, generations: int
) -> None:
    begun = []

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        begun.append(spec.generation)
        raise RankFailedError(1, "h", "gone", kind=kind)

    monkeypatch.setattr(supervisor, "run_generation", generation)
    with pytest.raises(RankFailedError, match="gone"):
        hvdspark.run(time.time, num_workers=2, spark=spark, max_restarts=2)
    assert begun == list(range(generations))
