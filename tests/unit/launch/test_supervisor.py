"""When a gang is started again."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hvdspark.errors import RankFailedError
from hvdspark.events import GenerationStarted, RankLost
from hvdspark.fan_out import event_of
from hvdspark.launch import supervisor
from hvdspark.launch.protocol import Launcher, LaunchSpec
from hvdspark.launch.same_host import SameHostLauncher


@pytest.mark.parametrize(
    ("kind", "generations"), [("signal", 3), ("executor_lost", 3), ("peer_lost", 3), ("exception", 1), ("exit", 1)]
)
def test_restarts_are_bounded(monkeypatch: pytest.MonkeyPatch, kind: str, generations: int) -> None:
    begun, told = [], []

    def generation(launcher: Launcher, spec: LaunchSpec, *others: Any) -> list[Any]:
        begun.append(spec.generation)
        raise RankFailedError(1, "h", "gone", kind=kind)

    monkeypatch.setattr(supervisor, "run_generation", generation)

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
