"""Ranks are asked to make room when one of their executors is about to go."""

from __future__ import annotations

import queue
import threading

import pytest

from hvdspark.launch.leave_watch import LeaveWatch

LOOK_EVERY_S = 0.01


def test_they_are_asked_once() -> None:
    answers: list[list[str]] = [[], [], ["3", "5"], ["3", "5"]]
    asked: queue.Queue[str] = queue.Queue()
    with LeaveWatch(lambda: answers.pop(0), asked.put, LOOK_EVERY_S):
        assert asked.get(timeout=10) == "Spark decommissions executors 3, 5"
    assert len(answers) == 1
    assert asked.empty()


def test_where_nobody_can_say_the_watch_ends() -> None:
    looked = threading.Event()

    def leaving() -> list[str]:
        looked.set()
        raise TypeError("no such method")

    with LeaveWatch(leaving, pytest.fail, LOOK_EVERY_S) as watch:
        assert looked.wait(10)
    assert not watch._thread.is_alive()
