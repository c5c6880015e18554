"""A rank process starts with a clean environment, and its end is told apart."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

import cloudpickle
import psutil
import pytest

from hvdspark.errors import MemoryBudgetError
from hvdspark.launch import child, frames
from hvdspark.launch.child import RankProcess, describe_signal
from hvdspark.launch.outcomes import Outcome, StopCause


def process_that(monkeypatch: pytest.MonkeyPatch, does: str, **more: Any) -> RankProcess:
    """A process of the same kind as a rank that does not take the time to import torch."""
    start = "import os, sys, time; path, out, parent = {path!r}, {result_fd}, {parent_pid}; "
    monkeypatch.setattr(child, "_BOOTSTRAP", start + does)
    return RankProcess(dict(os.environ), on_event=lambda event: None, **more)


def test_a_rank_that_reads_nothing_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    process = process_that(monkeypatch, "time.sleep(600)")
    process.send_program(bytes(10 << 20))
    process.stop(StopCause("stopped", "enough"))
    assert process.wait() == Outcome("aborted", kind="stopped", cause="enough")
    assert not process.wait_ready()


def test_a_process_that_the_kernel_cannot_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_DIE_S", 0.2)
    process = process_that(monkeypatch, "time.sleep(600)")
    end = process._kill_group
    monkeypatch.setattr(process, "_kill_group", lambda: None)
    monkeypatch.setattr(process, "_kill_adopted", lambda: None)
    process.stop()
    assert process.wait().status == "aborted"
    process.end()
    end()


def test_progress_without_lines_does_not_fill_the_task(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    process = process_that(monkeypatch, "bar = b'\\r' + b'#' * 99; [os.write(1, bar * 1000) for _ in range(300)]")
    before = psutil.Process().memory_info().rss
    assert process.wait().kind == "exit"
    assert psutil.Process().memory_info().rss - before < 15 << 20, "30 MB were printed"
    assert "#" * 99 in capfd.readouterr().err


def test_the_search_path_of_a_rank(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    process = process_that(monkeypatch, "print(path[0], path[1:] == {path!r}[1:])", search_path=["/first"])
    process.wait()
    assert capfd.readouterr().err == "/first True\n"


def test_archives_of_spark_in_which_nothing_is_found_are_not_searched(
    monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    zips = [f"/venv/site-packages/pyspark/python/lib/{name}.zip" for name in ("pyspark", "py4j-0.10.9.9-src")]
    own = ["/app/pyspark.zip", "/opt/spark/python/lib/pyspark.zip", "/app/mine.jar", "/app/my-spark-core_x.jar", ""]
    monkeypatch.setattr(sys, "path", ["/opt/spark/jars/spark-core_2.13-4.0.5.jar", *zips, *own])
    process_that(monkeypatch, "print(path)").wait()
    assert capfd.readouterr().err == f"{[*zips, *own]}\n"
    sys.path.append("/venv/site-packages")
    process_that(monkeypatch, "print(path)").wait()
    assert capfd.readouterr().err == f"{[*own, '/venv/site-packages']}\n"


def error_of(outcome: Outcome) -> MemoryBudgetError:
    found: MemoryBudgetError = cloudpickle.loads(bytes.fromhex(outcome.error))
    return found


def test_native_code_that_finds_no_memory_is_named(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    said = "terminate called after throwing an instance of 'std::bad_alloc'"
    outcome = process_that(monkeypatch, f'print("{said}", flush=True); os.abort()').wait()
    assert (outcome.status, outcome.kind, said in outcome.tail) == ("failed", "memory", True)
    assert "native code gave up" in str(error_of(outcome))
    assert process_that(monkeypatch, "os.abort()").wait().kind == "signal", "an abort of another reason"


def test_a_kill_of_the_kernel_in_a_full_container_is_named(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    counted = iter([2, 3, 3, 3])
    monkeypatch.setattr(child, "out_of_memory_kills", lambda: next(counted))
    kill = "os.kill(os.getpid(), 9)"
    outcome = process_that(monkeypatch, kill).wait()
    assert outcome.kind == "memory"
    assert "its control group (the container) had no memory left" in str(error_of(outcome))
    assert process_that(monkeypatch, kill).wait().kind == "signal", "whoever else killed it"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_signals_have_names(number: signal.Signals) -> None:
    assert describe_signal(number).startswith(f"killed by {number.name} ({int(number)})")


def test_unknown_signal() -> None:
    assert describe_signal(99) == "killed by signal (99)"


def test_a_kill_points_at_memory() -> None:
    assert "spark.executor.memoryOverhead" in describe_signal(signal.SIGKILL)


def test_frames_round_trip() -> None:
    stream = io.BytesIO()
    frames.write_frame(stream, frames.EVENT, b"one")
    frames.write_frame(stream, frames.RESULT, b"")
    stream.seek(0)
    assert frames.read_frame(stream) == (frames.EVENT, b"one")
    assert frames.read_frame(stream) == (frames.RESULT, b"")
    assert frames.read_frame(stream) is None


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_frame_cut_short_is_the_end(kept: int) -> None:
    stream = io.BytesIO()
    frames.write_frame(stream, frames.RESULT, b"abc")
    assert frames.read_frame(io.BytesIO(stream.getvalue()[:kept])) is None
