"""Generations of more or fewer ranks, and what is said of them. What a generation does is made up here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hvdspark.errors import DataError, NotEnoughSlotsError, PreemptedError, RankFailedError
from hvdspark.events import GenerationStarted, RankLost, SlotsAwaited
from hvdspark.fan_out import event_of
from hvdspark.launch import generations, restarts, room
from hvdspark.launch.line import Waiting
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import Launcher, LaunchSpec, Seat, Slots
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from hvdspark.launch.world_sizes import WorldSizes

Event = dict[str, Any]


class Cluster(SameHostLauncher):
    """A launcher of one gang, whose seat has as many slots as a test says."""

    def __init__(self, slots: int) -> None:
        self.now = slots
        self.held: list[int] = []

    @contextlib.contextmanager
    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> Iterator[Seat]:
        yield self

    def slots(self, running: int = 0) -> Slots | None:
        return Slots(self.now, self.now)

    def hold(self, ranks: int) -> None:
        self.held.append(ranks)


class Play:
    """What each generation does: a function of (spec, on_event, preemption), or the error that ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *acts: Any) -> None:
        self.sizes: list[int] = []
        self.secrets: list[str] = []
        self.told: list[Event] = []
        self._acts = iter(acts)
        monkeypatch.setattr(generations, "run_generation", self._run)

    def _run(
        self,
        launcher: Launcher,
        spec: LaunchSpec,
        on_event: Callable[[Event], None],
        preemption: Preemption,
        slots: Callable[[], Slots | None],
    ) -> list[Any]:
        assert spec.generation == len(self.sizes)
        self.sizes.append(spec.world_size)
        self.secrets.append(spec.secret)
        act = next(self._acts)
        if isinstance(act, Exception):
            raise act
        return [act(spec, on_event, preemption)] * spec.world_size

    def events(self) -> list[Any]:
        return [event_of(event) for event in self.told]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_EVERY_S", "_SAY_AFTER_S", "_WATCH_EVERY_S", "GROW_AFTER_S", "SETTLE_FIRST_S"):
        monkeypatch.setattr(room, name, 0.02)
    monkeypatch.setattr(generations, "SETTLE_S", 0.3)
    monkeypatch.setattr(restarts, "PAUSE_S", 0.01)


def killed(rank: int | None = 1, step: int | None = None) -> RankFailedError:
    return RankFailedError(rank, "h", "killed by SIGKILL", kind="signal", step=step)


def well(spec: LaunchSpec, on_event: Callable[[Event], None], preemption: Preemption) -> str:
    return f"of generation {spec.generation}"


def test_lost_slots_shrink_the_gang_and_those_that_come_back_let_it_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(2)

    def lose_one(spec: LaunchSpec, on_event: Any, preemption: Preemption) -> None:
        on_event({"event": "checkpoint", "epoch": 0, "path": "a"})
        cluster.now = 1
        raise killed()

    def make_room(spec: LaunchSpec, on_event: Any, preemption: Preemption) -> None:
        cluster.now = 3
        deadline = time.monotonic() + 20
        while preemption.reason is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert preemption.reason == "there is room for 2 ranks"
        raise PreemptedError("the ranks have made room")

    play = Play(monkeypatch, lose_one, make_room, well)
    results = supervise(cluster, time.time, num_workers=2, min_workers=1, max_restarts=1, on_event=play.told.append)
    assert results == ["of generation 2"] * 2
    assert play.sizes == cluster.held == [2, 1, 2]
    started = [event for event in play.events() if isinstance(event, GenerationStarted)]
    assert [(event.world_size, event.restart) for event in started] == [(2, ""), (1, "failed"), (2, "resized")]
    assert started[1].cause == "generation 0 (2 ranks): rank 1 on host h: killed by SIGKILL"
    assert "the ranks have made room" in started[2].cause
    assert [event.kind for event in play.events() if isinstance(event, RankLost)] == ["signal"], "no failure"


def test_each_generation_has_a_secret_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = []
    for _ in range(2):
        play = Play(monkeypatch, killed(), well)
        supervise(Cluster(2), time.time, num_workers=2, max_restarts=1)
        secrets += play.secrets
    assert len(set(secrets)) == 4
    assert all(len(secret) == 32 for secret in secrets), "128 bits"


def test_a_replaced_executor_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "SETTLE_S", 60.0)
    cluster = Cluster(2)
    looks = iter([1, 1, 1])
    monkeypatch.setattr(cluster, "slots", lambda running=0: Slots(found := next(looks, 2), found))
    looks = iter([2, 2, 1, 1, 1])
    play = Play(monkeypatch, killed(), well)
    supervise(cluster, time.time, num_workers=2, min_workers=1, max_restarts=1)
    assert play.sizes == [2, 2]


def test_the_first_generation_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, well)
    assert len(supervise(Cluster(3), time.time, min_workers=1, max_workers=8)) == 3
    assert play.sizes == [3]


def test_a_fixed_number_of_ranks_waits_visibly_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(2)

    def lose_one(spec: LaunchSpec, on_event: Any, preemption: Preemption) -> None:
        cluster.now = 0
        raise killed()

    play = Play(monkeypatch, lose_one)
    with pytest.raises(NotEnoughSlotsError, match="2 ranks need as many task slots") as caught:
        supervise(cluster, time.time, num_workers=2, max_restarts=1, start_timeout_s=0.3, on_event=play.told.append)
    assert "generation 0 (2 ranks): rank 1 on host h: killed by SIGKILL" in str(caught.value), "what began it"
    waits = [event for event in play.events() if isinstance(event, SlotsAwaited)]
    assert [(event.slots, event.free, event.total) for event in waits] == [(2, 0, 0)]
    assert "waiting for 2 slots, 0 free" in caplog.text
    assert play.sizes == [2]


def test_the_error_tells_what_ended_every_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, killed(0), killed(1), killed(0))
    with pytest.raises(RankFailedError) as caught:
        supervise(Cluster(2), time.time, num_workers=2, max_restarts=2)
    text = str(caught.value)
    assert text.startswith("rank 0 on host h failed: killed by SIGKILL")
    assert "It is not started again: 2 restarts in a row without a new checkpoint" in text
    assert "generation 0 (2 ranks): rank 0 on host h: killed by SIGKILL" in text
    assert "generation 1 (2 ranks): rank 1 on host h: killed by SIGKILL" in text
    assert play.sizes == [2, 2, 2]


def test_checkpoints_renew_the_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(spec: LaunchSpec, on_event: Any, preemption: Preemption) -> None:
        on_event({"event": "checkpoint", "epoch": spec.generation, "path": "a"})
        raise killed()

    play = Play(monkeypatch, *[advance] * 5, well)
    supervise(Cluster(2), time.time, num_workers=2, max_restarts=1)
    assert len(play.sizes) == 6


def test_a_step_that_ends_its_rank_twice_is_said_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, killed(1, 17), killed(1, 17))
    with pytest.raises(RankFailedError, match="not started again: rank 1 has ended in step 17 twice"):
        supervise(Cluster(2), time.time, num_workers=2, max_restarts=9)
    assert len(play.sizes) == 2


def test_an_exception_is_raised_at_once_and_tells_of_the_generations_before(monkeypatch: pytest.MonkeyPatch) -> None:
    own = DataError("labels are odd", value=3)
    own.__cause__ = RankFailedError(1, "h", "DataError: labels are odd", kind="exception", traceback_text="its own")
    play = Play(monkeypatch, killed(), own)
    with pytest.raises(DataError, match="labels are odd: 3") as caught:
        supervise(Cluster(2), time.time, num_workers=2, max_restarts=9)
    assert "generation 0 (2 ranks): rank 1" in str(caught.value)
    assert "its own" in str(caught.value.__cause__)
    assert len(play.sizes) == 2


@pytest.mark.parametrize("waits", [False, True], ids=["while ranks run", "while it waits for slots"])
def test_who_asks_for_room_gets_it_and_no_further_generation(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    cluster, asked = Cluster(2), Preemption()

    def make_room(spec: LaunchSpec, on_event: Any, preemption: Preemption) -> None:
        cluster.now = 0
        if waits:
            raise killed()
        asked.ask("enough")
        assert preemption.reason == "enough"
        raise PreemptedError("the ranks have made room")

    def hear(event: Event) -> None:
        if event["event"] == "waiting":
            asked.ask("enough")

    play = Play(monkeypatch, make_room)
    with pytest.raises(PreemptedError):
        supervise(cluster, time.time, num_workers=2, max_restarts=3, on_event=hear, preemption=asked)
    assert play.sizes == [2]


def test_a_platform_that_wants_its_slots_back_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch, PreemptedError("SIGTERM"), well)
    supervise(Cluster(2), time.time, num_workers=2, max_restarts=0, on_event=play.told.append)
    assert play.sizes == [2, 2]
    assert play.events()[-1] == GenerationStarted(
        1, 2, "preempted", "generation 0 (2 ranks): an executor on host unknown: PreemptedError: SIGTERM"
    )
