"""When a program is started again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hvdspark.errors import ClusterError, DataError, PreemptedError, RankFailedError, StartTimeoutError
from hvdspark.launch import restarts
from hvdspark.launch.restarts import Ending, Verdict, kind_of, verdict

KILLED = Ending(0, 2, "signal", 1, "h", "killed by SIGKILL", step=3)


def ended(*kinds: str, **others: Any) -> list[Ending]:
    """Endings one after the other, each in another step."""
    return [replace(KILLED, generation=n, kind=kind, step=n, **others) for n, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kind", "again", "pause_s"),
    [
        ("exception", False, 0.0),
        ("exit", False, 0.0),
        ("memory", False, 0.0),
        ("signal", True, 1.0),
        ("peer_lost", True, 1.0),
        ("executor_lost", True, 1.0),
        ("stalled", True, 1.0),
        ("preempted", True, 0.0),
        ("of a later version", False, 0.0),
    ],
)
def test_each_kind_of_ending_has_its_fate(kind: str, again: bool, pause_s: float) -> None:
    assert verdict(ended(kind), max_restarts=3) == Verdict(again, pause_s)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RankFailedError(1, "h", "gone", kind="peer_lost"), "peer_lost"),
        (PreemptedError("made room"), "preempted"),
        (DataError("odd labels"), "exception"),
        (StartTimeoutError("too late"), "exception"),
        (ClusterError("no such job"), "exception"),
    ],
)
def test_an_error_is_of_a_kind(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_the_pause_doubles_up_to_a_limit() -> None:
    pauses = [verdict(ended(*["signal"] * n), max_restarts=99).pause_s for n in range(1, 9)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_restarts_are_counted_in_a_row() -> None:
    assert verdict(ended("signal", "executor_lost"), 2).again
    stopped = verdict(ended("signal", "executor_lost", "stalled"), 2)
    assert stopped == Verdict(False, why="2 restarts in a row without a new checkpoint")
    assert verdict(ended("signal"), 0) == Verdict(False), "nobody asked for any: nothing is to be said"


def test_a_new_checkpoint_renews_the_number_and_the_pause() -> None:
    first, second, third = ended("signal", "signal", "signal")
    second = replace(second, advanced=True)
    assert verdict([first, second], 1) == Verdict(True, 1.0), "the first since that checkpoint"
    assert verdict([first, second, third], 2) == Verdict(True, 2.0)
    assert not verdict([first, second, third], 1).again


def test_who_makes_room_is_not_counted() -> None:
    assert verdict(ended("preempted", "signal", "preempted", "preempted"), 1).again
    assert verdict(ended("preempted", "preempted", "signal"), 1) == Verdict(True, 1.0)
    never = verdict(ended(*["preempted"] * (restarts.MOST_FREE + 1)), 1)
    assert not never.again
    assert "asked to make room 21 times" in never.why
    assert verdict(ended(*["preempted"] * 99, advanced=True), 1).again, "it gets on"


@pytest.mark.parametrize(
    ("other", "stops"),
    [
        ({}, True),
        ({"step": 4}, False),
        ({"rank": 0}, False),
        ({"kind": "stalled"}, False),
        ({"cause": "killed by SIGSEGV"}, False),
        ({"advanced": True}, False),
        ({"step": None}, False),
    ],
)
def test_the_same_step_twice_is_not_tried_a_third_time(other: dict[str, Any], stops: bool) -> None:
    found = verdict([KILLED, replace(KILLED, generation=1, **other)], 9)
    assert found.again is not stops
    assert ("rank 1 has ended in step 3 twice" in found.why) is stops


def test_nobody_knows_the_steps_of_two_executors_that_are_lost() -> None:
    lost = replace(KILLED, kind="executor_lost", step=None)
    assert verdict([lost, replace(lost, generation=1)], 9).again


def test_an_ending_is_a_sentence() -> None:
    assert str(KILLED) == "generation 0 (2 ranks): rank 1 on host h in step 3: killed by SIGKILL"
    lost = replace(KILLED, world_size=1, rank=None, step=None, cause="its executor was lost")
    assert str(lost) == "generation 0 (1 rank): an executor on host h: its executor was lost"
