"""When a gang must stop, and who is to blame."""

from __future__ import annotations

import threading
import time

import pytest

from hvdspark.launch.outcomes import Outcome, Outcomes

OK = Outcome("ok")
OWN_FAULT = Outcome("failed", "exception")
PEER_LOST = Outcome("failed", "peer_lost")
MADE_ROOM = Outcome("failed", "preempted")


def test_ranks_that_are_never_ready_are_named() -> None:
    outcomes = Outcomes(size=3, start_timeout_s=0.2)
    outcomes.ready(1)
    cause = outcomes.stop_cause(wait_s=10)
    assert cause is not None
    assert cause.kind == "start_timeout"
    assert "ranks [0, 2] were not ready" in cause.cause
    started = Outcomes(size=1, start_timeout_s=0.0)
    started.ready(0)
    assert not started.must_stop(wait_s=0.1), "once all are ready, training takes as long as it takes"


def test_the_rest_is_silent() -> None:
    outcomes = Outcomes(size=2)
    outcomes.record(0, OK)
    assert not outcomes.rest_is_silent(silent_s=60)
    assert outcomes.rest_is_silent(silent_s=0)


def test_while_one_is_heard_of_the_rest_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    outcomes = Outcomes(size=2)
    now[0] += 50
    outcomes.heard(1)
    assert not outcomes.rest_is_silent(silent_s=40)
    now[0] += 50
    assert outcomes.rest_is_silent(silent_s=40)


@pytest.mark.parametrize("outcome", [PEER_LOST, MADE_ROOM])
def test_a_victim_only_stops_the_gang_after_the_grace(outcome: Outcome) -> None:
    outcomes = Outcomes(size=2, grace_s=0.3)
    started = time.monotonic()
    outcomes.record(0, outcome)
    assert not outcomes.must_stop(wait_s=0)
    assert outcomes.must_stop(wait_s=10)
    assert 0.25 <= time.monotonic() - started < 5


def test_the_culprit_stops_the_gang_within_the_grace() -> None:
    outcomes = Outcomes(size=3, grace_s=60)
    outcomes.record(0, PEER_LOST)
    outcomes.record(1, OWN_FAULT)
    assert outcomes.must_stop(wait_s=0)


def test_all_reported() -> None:
    outcomes = Outcomes(size=2)
    outcomes.record(0, OK)
    outcomes.record(0, OWN_FAULT)  # only the first report of a rank counts
    assert not outcomes.wait_all(wait_s=0.01)
    assert not outcomes.must_stop(wait_s=0)
    outcomes.record(1, OK)
    assert outcomes.wait_all(wait_s=0)


def test_whoever_waits_is_released_at_the_end() -> None:
    outcomes, waiting = Outcomes(size=2), threading.Event()

    def wait() -> None:
        waiting.set()
        outcomes.all_ready(wait_s=100)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waiting.wait(30)
    outcomes.close()
    thread.join(30)
    assert not thread.is_alive()
