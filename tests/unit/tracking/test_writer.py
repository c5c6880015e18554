"""The queue and its thread, without a server: who takes the entries is slow, refuses, fails for a while or for ever."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from hvdspark.tracking.batches import Request, entries_of
from hvdspark.tracking.entries import Entry, Metric, Param, Status, Tag, Text
from hvdspark.tracking.writer import Patience, Writer

QUICK = Patience(gather_s=0.0, retry_s=0.01, longest_retry_s=0.02, grace_s=20.0)
WAIT_S = 20.0

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


def points(count: int, *, spare: bool = False) -> list[Entry]:
    return [Metric("loss", 0.5, number, 1, spare) for number in range(count)]


class PassingError(Exception):
    """Of a kind that may pass."""


class Taker:
    """Takes requests; `before` is called first, and may wait or raise."""

    name = "somebody"

    def __init__(self, before: Callable[[Request], None] = lambda request: None) -> None:
        self.before = before
        self.tried: list[Request] = []
        self.taken: list[Entry] = []
        self.closed: tuple[Status, str] | None = None
        self.over = threading.Event()

    def open(self) -> None:
        """Ready."""

    def write(self, request: Request) -> None:
        self.tried.append(request)
        self.before(request)
        self.taken += entries_of(request)

    def close(self, status: Status, lost: str) -> None:
        self.closed = (status, lost)
        self.over.set()

    def may_pass(self, error: Exception) -> bool:
        return isinstance(error, PassingError)


class Closed(Taker):
    def open(self) -> None:
        raise ValueError("no entry")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_everything_arrives_in_order(caplog: pytest.LogCaptureFixture) -> None:
    taker = Taker()
    writer = Writer(taker, QUICK)
    writer.start()
    entries = [Param("a", "1"), Tag("b", "2"), *points(5000)]
    for entry in entries:
        writer.put([entry])
    writer.finish("FINISHED")
    assert taker.taken == entries
    assert taker.closed == ("FINISHED", "")
    assert warnings(caplog) == []


def test_entries_are_gathered() -> None:
    taker = Taker()
    writer = Writer(taker, replace(QUICK, gather_s=WAIT_S))
    writer.put(points(5))
    writer.start()
    for _ in range(50):
        writer.put(points(1))
    writer.finish("FINISHED")
    assert len(taker.tried) == 1, "the end of a fit ends the gathering"


def test_nobody_waits_for_who_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    go_on, asked = threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        asked.set()
        assert go_on.wait(WAIT_S)

    taker = Taker(wait)
    writer = Writer(taker, replace(QUICK, capacity=100, grace_s=0.0))
    writer.start()
    writer.put(points(1))
    assert asked.wait(WAIT_S)
    started = time.monotonic()
    writer.put(points(90, spare=True))
    writer.put(points(60))
    writer.put(points(30, spare=True))
    writer.put(points(50))
    writer.finish("FAILED")
    assert time.monotonic() - started < 1.0
    assert not taker.over.is_set()
    go_on.set()
    assert taker.over.wait(WAIT_S)
    kept = [entry for entry in taker.taken if isinstance(entry, Metric)]
    assert len(kept) == 101
    assert not any(entry.spare for entry in kept), "what may be spared is lost first"
    assert taker.closed == ("FAILED", "130 metric values")
    assert warnings(caplog) == [
        "somebody has not taken everything yet, what is left is written while the program goes on",
        "somebody did not take everything; lost: 130 metric values (the queue was full)",
    ]


def test_what_may_pass_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = iter(range(5))

    def fail(request: Request) -> None:
        if next(failures, None) is not None:
            raise PassingError("out for lunch")

    taker = Taker(fail)
    writer = Writer(taker, QUICK)
    writer.start()
    writer.put(points(3))
    while len(taker.tried) < 6:
        writer.put(points(1, spare=True))
        time.sleep(0.002)  # the pauses between tries are the writer's own
    writer.finish("FINISHED")
    assert taker.tried[0] == taker.tried[5]
    assert taker.taken[:3] == points(3)
    assert taker.closed == ("FINISHED", "")
    assert warnings(caplog) == ["somebody failed, the fit goes on: PassingError: out for lunch"]


def test_what_is_refused_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(request: Request) -> None:
        if any(isinstance(entry, Param) for entry in entries_of(request)):
            raise ValueError("a Param of another value")

    taker = Taker(refuse)
    writer = Writer(taker, QUICK)
    writer.put([Param("a", "1"), Param("b", "1")])
    writer.put(points(2500))
    writer.start()
    writer.finish("FINISHED")
    assert len(taker.taken) == 1502, "the first request has Params, and the metrics that fit beside them"
    assert taker.closed == ("FINISHED", "2 Params, 998 metric values")
    assert warnings(caplog) == [
        "somebody failed, the fit goes on: ValueError: a Param of another value",
        "somebody did not take everything; lost: 2 Params, 998 metric values (ValueError: a Param of another value)",
    ]


def test_files_that_nobody_takes_delay_no_metric() -> None:
    def fail(request: Request) -> None:
        if isinstance(request, Text):
            raise PassingError("the store of artifacts is not there")

    taker = Taker(fail)
    writer = Writer(taker, replace(QUICK, retry_s=WAIT_S))
    writer.put([Text("plan.txt", "a plan"), *points(3)])
    writer.start()
    writer.finish("FINISHED")
    assert taker.taken == points(3)
    assert taker.closed == ("FINISHED", "1 text")


def test_who_is_down_at_the_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: Request) -> None:
        raise PassingError("gone")

    taker = Taker(fail)
    writer = Writer(taker, replace(QUICK, retry_s=WAIT_S))
    writer.start()
    writer.put(points(4000))
    started = time.monotonic()
    writer.finish("FINISHED")
    assert time.monotonic() - started < 5.0, "it does not sit the pause out"
    assert taker.closed == ("FINISHED", "4,000 metric values")
    assert len(warnings(caplog)) == 2


def test_who_never_opens_loses_all_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    taker = Closed()
    writer = Writer(taker, QUICK)
    writer.put([Tag("a", "1")])
    writer.start()
    writer.put(points(7))
    writer.finish("KILLED")
    assert taker.taken == []
    assert taker.closed == ("KILLED", "1 tag, 7 metric values")
    assert warnings(caplog) == [
        "somebody failed, the fit goes on: ValueError: no entry",
        "somebody did not take everything; lost: 1 tag, 7 metric values (ValueError: no entry)",
    ]


@pytest.mark.parametrize(
    ("takes_s", "said"), [(0.5, "took 3 as FINISHED"), (60.0, "did not answer; lost: 3 metric values")]
)
def test_the_end_of_the_process_waits_for_what_is_left_but_not_for_ever(takes_s: float, said: str) -> None:
    code = f"""
import time
from hvdspark.tracking.batches import entries_of
from hvdspark.tracking.entries import Metric
from hvdspark.tracking.writer import Patience, Writer
class Slow:
    name = "somebody"
    def open(self): pass
    def write(self, request):
        time.sleep({takes_s})
        self.count = len(entries_of(request))
    def close(self, status, lost): print("took", self.count, "as", status, flush=True)
    def may_pass(self, error): return False
writer = Writer(Slow(), Patience(gather_s=0.05, grace_s=0.1, exit_s=1.5))
writer.put(Metric("loss", 0.5, step, 1) for step in range(3))
writer.start()
writer.finish("FINISHED")
"""
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert said in result.stdout + result.stderr
    assert result.returncode == 0
    assert time.monotonic() - started < 30
