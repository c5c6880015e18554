"""Whether a gang has started, and what a failed Spark job means."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from hvdspark.errors import ClusterError, RankFailedError, StartTimeoutError
from hvdspark.launch.job_errors import explain
from hvdspark.launch.protocol import Located
from hvdspark.launch.start_watch import StartWatch

STARTED = {"event": "started", "rank": 0, "host": "h"}


def no_answer() -> bool:
    raise OSError("the session ends")


@pytest.mark.parametrize(
    ("running", "events", "cancelled"),
    [
        (lambda: True, [], False),
        (lambda: False, [STARTED], False),
        (lambda: False, [{"event": "progress"}], True),
        (no_answer, [], True),
        (lambda: None, [], False),
    ],
    ids=["Spark says so", "a task says so", "nobody says so", "Spark says nothing", "nobody can say"],
)
def test_tasks_that_run_are_not_cancelled(
    running: Callable[[], bool | None], events: list[dict[str, Any]], cancelled: bool
) -> None:
    watch, cancel = StartWatch(2, lambda event: None), threading.Event()
    for event in events:
        watch.on_event(event)
    watch.begin(0.2, running, cancel.set)
    assert cancel.wait(timeout=5 if cancelled else 0.6) == cancelled
    watch.end()
    cancelled_job = RuntimeError("Job 3 cancelled")
    error = watch.timed_out() or explain(cancelled_job, watch.lost())
    assert isinstance(error, StartTimeoutError if cancelled else ClusterError)
    assert ("0 of 2 ranks started within 0.2 s" in str(error)) == cancelled


def test_a_connection_that_was_cut_for_a_moment_loses_no_executor() -> None:
    watch = StartWatch(2, lambda event: None)
    watch.on_event(STARTED)
    watch.on_lost(STARTED)
    lost = explain(RuntimeError("Job aborted"), watch.lost())
    assert isinstance(lost, RankFailedError)
    assert (lost.rank, lost.kind) == (0, "executor_lost")
    watch.on_event(STARTED)
    assert not isinstance(explain(RuntimeError("Job aborted"), watch.lost()), RankFailedError)


def test_an_error_without_words_of_a_job_whose_rank_is_lost() -> None:
    lost = explain(RuntimeError(), Located(1, "h"))
    assert isinstance(lost, RankFailedError)
    assert (lost.rank, lost.cause) == (1, "its executor was lost: RuntimeError")


def test_a_task_that_does_not_answer_is_named_by_the_others() -> None:
    trace = (
        "PythonException: Traceback (most recent call last):\n  ...\nhvdspark.errors.RankFailedError: rank 1 on host "
        "b-2.example failed: not heard of for 20 s\n\n\tat org.apache.spark"
    )
    error = explain(RuntimeError(trace), None)
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.host, error.kind) == (1, "b-2.example", "stalled")
    assert error.cause == "not heard of for 20 s"
