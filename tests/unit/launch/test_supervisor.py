"""When a gang is started again."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import ConfigurationError, HvdSparkError, PreemptedError, RankFailedError, StoreError
from hvdspark.events import GenerationStarted, RankLost
from hvdspark.fan_out import event_of
from hvdspark.launch import line, restarts, supervisor
from hvdspark.launch.line import Line, Waiting
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import Launcher, LaunchSpec, Seat
from hvdspark.launch.same_host import NoSlots, SameHostLauncher
from hvdspark.launch.world_sizes import WorldSizes


@pytest.mark.parametrize(
    ("kind", "generations"), [("signal", 3), ("executor_lost", 3), ("peer_lost", 3), ("exception", 1), ("exit", 1)]
)
def test_restarts_are_bounded(monkeypatch: pytest.MonkeyPatch, kind: str, generations: int) -> None:
    monkeypatch.setattr(restarts, "PAUSE_S", 0.01)
    begun, told = [], []

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        begun.append(spec.generation)
        raise RankFailedError(1, "h", "gone", kind=kind)

    monkeypatch.setattr("hvdspark.launch.generations.run_generation", generation)

    def broken_listener(event: dict[str, Any]) -> None:
        told.append(event)
        raise ValueError("of no importance")

    with pytest.raises(RankFailedError, match="gone"):
        supervisor.supervise(SameHostLauncher(), time.time, num_workers=2, max_restarts=2, on_event=broken_listener)
    assert begun == list(range(generations))
    lost = generations if generations > 1 else 0
    assert [event["event"] for event in told].count("generation") == generations
    assert [event["event"] for event in told].count("rank_lost") == lost
    events = [event_of(event) for event in told]
    assert events[0] == GenerationStarted(0, 2)
    assert [event for event in events if isinstance(event, RankLost)] == [
        RankLost(number, 1, "h", kind, "gone") for number in range(lost)
    ]


def test_making_room_for_the_platform_counts_as_no_restart_and_for_the_caller_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    preemption = Preemption()

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        begun.append(spec.generation)
        if spec.generation == 3:
            preemption.ask("a test wants it")
        raise PreemptedError("stopped")

    monkeypatch.setattr("hvdspark.launch.generations.run_generation", generation)
    with pytest.raises(PreemptedError, match="stopped"):
        supervisor.supervise(SameHostLauncher(), time.time, max_restarts=0, preemption=preemption)
    assert begun == [0, 1, 2, 3]
    with pytest.raises(PreemptedError, match="before they were started.*a test wants it"):
        supervisor.supervise(SameHostLauncher(), time.time, preemption=preemption)
    assert begun == [0, 1, 2, 3]


class OneSlot(SameHostLauncher):
    """Has slots for one rank."""

    def __init__(self) -> None:
        self.line = Line()

    @contextlib.contextmanager
    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> Iterator[Seat]:
        with self.line.turn(sizes.least, lambda: 1, on_wait):
            yield NoSlots()


def test_who_finds_no_slots_waits_says_so_and_starts_no_generation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(line, "_SAY_AFTER_S", 0.05)
    monkeypatch.setattr(line, "_SAY_EVERY_S", 0.05)
    began, may_end = threading.Event(), threading.Event()
    order: list[str] = []
    told: queue.Queue[dict[str, Any]] = queue.Queue()

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        order.append(f"{threading.current_thread().name} {spec.generation}")
        if len(order) == 1:
            began.set()
            assert may_end.wait(20)
            raise RankFailedError(0, "h", "killed", kind="signal")
        return [order]

    monkeypatch.setattr("hvdspark.launch.generations.run_generation", generation)
    launcher = OneSlot()

    def launch(on_event: Callable[[dict[str, Any]], None]) -> None:
        supervisor.supervise(launcher, time.time, num_workers=1, max_restarts=1, on_event=on_event)

    threads = [threading.Thread(target=launch, args=(told.put if k else print,), name="ab"[k]) for k in range(2)]
    threads[0].start()
    assert began.wait(20)
    threads[1].start()
    with caplog.at_level(logging.INFO, "hvdspark"):
        first, again = told.get(timeout=20), told.get(timeout=20)
    may_end.set()
    for thread in threads:
        thread.join(20)
    assert (first["event"], first["slots"], first["free"], first["total"], first["ahead"]) == ("waiting", 1, 0, 1, 1)
    assert again["waited_s"] > first["waited_s"]
    levels = [record.levelno for record in caplog.records if "wait for as many task slots: 0 of 1" in record.message]
    assert levels[:2] == [logging.WARNING, logging.INFO], "loudly once"
    assert order == ["a 0", "a 1", "b 0"], "who is started again keeps the slots"


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"store_uri": "s4://bucket/x"}, StoreError, "unknown scheme of a store URI: 's4'"),
        ({"store_uri": ""}, StoreError, "the store URI is empty"),
        ({"start_timeout_s": math.inf}, ConfigurationError, "time to start is out of range: inf"),
        ({"start_timeout_s": math.nan}, ConfigurationError, "time to start is out of range: nan"),
        ({"start_timeout_s": 0.0}, ConfigurationError, "time to start is out of range: 0.0"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], kind: type[HvdSparkError], message: str
) -> None:
    monkeypatch.setattr("hvdspark.launch.generations.run_generation", lambda *given: pytest.fail("ranks are started"))
    with pytest.raises(kind, match=message):
        supervisor.supervise(SameHostLauncher(), time.time, **wrong)


def test_a_store_without_a_scheme_is_where_the_driver_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Executors have working directories of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hvdspark.launch.generations.run_generation", lambda launcher, spec, *others: [spec.store_uri])
    given = {"here": f"file://{tmp_path}/here", "/there": "file:///there", None: None}
    for store_uri, expected in given.items():
        assert supervisor.supervise(SameHostLauncher(), time.time, store_uri=store_uri) == [expected]
