"""When a gang is started again."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import ConfigurationError, HvdSparkError, RankFailedError, StoreError
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
    monkeypatch.setattr(supervisor, "run_generation", lambda *given: pytest.fail("ranks are started"))
    with pytest.raises(kind, match=message):
        supervisor.supervise(SameHostLauncher(), time.time, **wrong)


def test_a_store_without_a_scheme_is_where_the_driver_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Executors have working directories of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervisor, "run_generation", lambda launcher, spec, report: [spec.store_uri])
    given = {"here": f"file://{tmp_path}/here", "/there": "file:///there", None: None}
    for store_uri, expected in given.items():
        assert supervisor.supervise(SameHostLauncher(), time.time, store_uri=store_uri) == [expected]
