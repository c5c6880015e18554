"""When the driver takes a gang for stalled."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hvdspark.launch import gang_watch
from hvdspark.launch.gang_watch import GangWatch

LIMIT_S = 20.0


class Gang:
    def __init__(self, size: int) -> None:
        self.now = 0.0
        self.watch = GangWatch(LIMIT_S)
        self.watch._clock._clock = lambda: self.now
        self.watch._clock._last = 0.0
        self.heard = dict.fromkeys(range(size), 0.0)  # seconds since the server answered, by ranks that are heard
        for rank in range(size):
            assert not self.watch.on_event({"event": "started", "rank": rank, "host": f"host-{rank}"})

    def seconds(self, count: int) -> str:
        for _ in range(count):
            self.now += 1
            for rank, server_s in self.heard.items():
                assert self.watch.on_event({"event": "alive", "rank": rank, "server_s": server_s})
            if (found := self.watch._verdict()) is not None:
                return f"after {self.now:g}: {found}"
        return ""


def test_while_all_are_heard_nothing_is_said() -> None:
    assert Gang(2).seconds(600) == ""


@pytest.mark.parametrize("size", [1, 2])
def test_a_frozen_server_is_noticed(size: int) -> None:
    gang = Gang(size)
    gang.seconds(10)
    del gang.heard[0]
    gang.heard.update({rank: 15.0 for rank in gang.heard})
    said = gang.seconds(25)
    assert said.startswith("after 31: rank 0 on host host-0 failed: the driver has not heard of its task for 20 s: ")


def test_one_that_another_task_hears_is_not_missed() -> None:
    gang = Gang(3)
    gang.seconds(10)
    del gang.heard[0], gang.heard[1]
    assert gang.seconds(600) == "", "the server hears of rank 1, and rank 2 of the server"
    del gang.heard[2]
    said = gang.seconds(25)
    assert "host-0" in said
    assert "nor of ranks [1]" in said


def test_a_task_that_is_over_is_not_missed() -> None:
    gang = Gang(1)
    assert gang.watch.on_event({"event": "over", "rank": 0})
    gang.heard.clear()
    assert gang.seconds(60) == ""


def test_what_tasks_say_is_taken_over_when_the_job_does_not_end() -> None:
    gang = Gang(3)
    gang.seconds(10)
    del gang.heard[2]
    gang.seconds(15)
    assert gang.watch.on_event({"event": "stalled", "by": 0, "rank": 2, "cause": "silent"})
    assert gang.watch.on_event({"event": "stalled", "by": 1, "rank": 0, "cause": "another one"})
    said = gang.seconds(10)
    assert said == "after 28: rank 2 on host host-2 failed: silent; nor does the driver hear of it"


def test_a_host_that_only_its_peers_do_not_reach() -> None:
    gang = Gang(2)
    gang.seconds(10)
    gang.watch.on_event({"event": "stalled", "by": 0, "rank": 1, "cause": "silent"})
    assert gang.seconds(10).endswith("silent; the driver hears of it")


def test_the_job_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_watch, "_LAST_WORDS_S", 0.0)
    watch, cancelled = GangWatch(0.4), threading.Event()
    watch.begin(cancelled.set)
    assert watch.stalled() is None
    event: dict[str, Any] = {"event": "stalled", "by": 0, "rank": None, "cause": "nobody gets on"}
    watch.on_event(event)
    assert cancelled.wait(10)
    watch.end()
    found = watch.stalled()
    assert found is not None
    assert (found.kind, found.rank) == ("stalled", None)


def test_a_job_that_ends_is_left_alone() -> None:
    watch, cancelled = GangWatch(0.4), threading.Event()
    watch.begin(cancelled.set)
    watch.end()
    assert not cancelled.is_set()
