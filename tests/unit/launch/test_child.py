"""A rank process starts with a clean environment, and its end is told apart."""

from __future__ import annotations

import io
import signal

import pytest

from hvdspark.launch import frames
from hvdspark.launch.child import describe_signal, rank_environment
from hvdspark.launch.rank import _caused_by_peer


def test_nothing_of_an_earlier_launch_leaks_in() -> None:
    stale = {"HOROVOD_RANK": "7", "OMPI_COMM_WORLD_SIZE": "9", "PMI_RANK": "1", "PMIX_ID": "x", "HOME": "/h"}
    environment = rank_environment(stale, threads=3, extra={"MINE": "1", "HOROVOD_CYCLE_TIME": "5"})
    assert environment["HOME"] == "/h"
    assert environment["MINE"] == "1"
    assert environment["HOROVOD_CYCLE_TIME"] == "5", "what the user sets on purpose stays"
    assert not {"HOROVOD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_ID"} & set(environment)


def test_threads_follow_the_task_unless_the_executor_says_otherwise() -> None:
    assert rank_environment({}, threads=3, extra={})["OMP_NUM_THREADS"] == "3"
    assert rank_environment({"OMP_NUM_THREADS": "8"}, threads=3, extra={})["OMP_NUM_THREADS"] == "8"


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


class HorovodInternalError(RuntimeError):
    """Has the name of Horovod's own."""


def test_a_vanished_peer_is_found_behind_other_exceptions() -> None:
    def wrapped() -> BaseException:
        try:
            try:
                raise HorovodInternalError("connection closed by peer")
            except HorovodInternalError:
                raise ValueError("while handling it")  # noqa: B904
        except ValueError as error:
            return error

    assert _caused_by_peer(HorovodInternalError())
    assert _caused_by_peer(wrapped())
    assert not _caused_by_peer(ValueError("own fault"))
