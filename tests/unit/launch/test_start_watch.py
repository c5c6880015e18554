"""Whether a gang has started, and what a failed Spark job means."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hvdspark.errors import ClusterError, RankFailedError, StartTimeoutError
from hvdspark.launch import start_watch
from hvdspark.launch.job_errors import explain
from hvdspark.launch.protocol import Heard, Located, Slots
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
    error = watch.timed_out() or explain(cancelled_job, watch.heard())
    assert isinstance(error, StartTimeoutError if cancelled else ClusterError)
    assert ("0 of 2 ranks started within 0.2 s" in str(error)) == cancelled


def test_a_connection_that_was_cut_for_a_moment_loses_no_executor() -> None:
    watch = StartWatch(2, lambda event: None)
    watch.on_event(STARTED)
    watch.on_lost(STARTED)
    lost = explain(RuntimeError("Job aborted"), watch.heard())
    assert isinstance(lost, RankFailedError)
    assert (lost.rank, lost.kind) == (0, "executor_lost")
    watch.on_event(STARTED)
    assert not isinstance(explain(RuntimeError("Job aborted"), watch.heard()), RankFailedError)


def test_an_error_without_words_of_a_job_whose_rank_is_lost() -> None:
    lost = explain(RuntimeError(), Heard(lost=Located(1, "h")))
    assert isinstance(lost, RankFailedError)
    assert (lost.rank, lost.cause) == (1, "its executor was lost: RuntimeError")


@pytest.mark.parametrize("cut", [None, 2], ids=["before its connection is cut", "when the others are cut, too"])
def test_the_task_of_an_executor_whose_end_spark_hears_of_first_is_named(cut: int | None) -> None:
    watch = StartWatch(3, lambda event: None)
    hellos = [
        {"event": "started", "rank": 2 - number, "host": f"h-{number}", "partition": number} for number in range(3)
    ]
    for hello in hellos:
        watch.on_event(hello)
    if cut is not None:
        watch.on_lost(hellos[cut])
    text = (
        "Job aborted due to stage failure: Could not recover from a failed barrier ResultStage. Most recent failure "
        "reason: Stage failed because barrier task ResultTask(264, 1) finished unsuccessfully.\n"
        "ExecutorLostFailure (executor 2 exited caused by one of the running tasks) Reason: Command exited with 137"
    )
    error = explain(RuntimeError(text), watch.heard())
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.host, error.kind) == (1, "h-1", "executor_lost")


def test_a_task_that_does_not_answer_is_named_by_the_others() -> None:
    trace = (
        "PythonException: Traceback (most recent call last):\n  ...\nhvdspark.errors.RankFailedError: rank 1 on host "
        "b-2.example failed: not heard of for 20 s\n\n\tat org.apache.spark"
    )
    error = explain(RuntimeError(trace), Heard())
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.host, error.kind) == (1, "b-2.example", "stalled")
    assert error.cause == "not heard of for 20 s"


def test_slots_that_others_have_are_waited_for_visibly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert start_watch._BUSY_AFTER_S < 5, "said within 5 seconds"
    for name in ("_BUSY_AFTER_S", "_ASK_EVERY_S"):
        monkeypatch.setattr(start_watch, name, 0.02)
    told: queue.Queue[dict[str, Any]] = queue.Queue()
    watch, cancel = StartWatch(2, told.put), threading.Event()
    watch.begin(20.0, lambda: False, cancel.set, lambda: Slots(2, 0))
    place = told.get(timeout=10)
    watch.end()
    assert (place["event"], place["slots"], place["free"], place["total"]) == ("waiting", 2, 0, 2)
    assert "waiting for 2 slots, 0 free" in caplog.text
    assert not cancel.is_set()
    assert told.empty(), "once in 30 seconds"


@pytest.mark.parametrize("gone", [False, True])
def test_tasks_whose_slots_have_gone_are_cancelled(monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    for name in ("_GONE_AFTER_S", "_ASK_EVERY_S"):
        monkeypatch.setattr(start_watch, name, 0.02)
    watch, cancel, looks = StartWatch(2, print), threading.Event(), threading.Semaphore(0)

    def look() -> Slots:
        looks.release()
        return Slots(1 if gone else 2, 0)

    watch.begin(20.0, lambda: False, cancel.set, look)
    for _ in range(2 if gone else 5):
        assert looks.acquire(timeout=10)
    assert cancel.wait(timeout=10) if gone else not cancel.is_set()
    watch.end()
    error = watch.without_slots()
    assert (error is not None) is gone
    assert error is None or (error.kind == "executor_lost" and "1 task slots for 2 ranks" in error.cause)
