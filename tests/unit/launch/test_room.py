"""How many ranks a generation gets, and when it could have more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from hvdspark.errors import NotEnoughSlotsError
from hvdspark.launch import room
from hvdspark.launch.protocol import Slots
from hvdspark.launch.room import GrowthWatch, Wanted, ranks_for, wait_for_room
from hvdspark.launch.world_sizes import WorldSizes

TWO, ONE_TO_TWO = WorldSizes(2, 2), WorldSizes(1, 2)


@pytest.mark.parametrize(
    ("slots", "wanted", "waited_s", "ranks"),
    [
        (None, Wanted(ONE_TO_TWO, 2, 8.0), 0.0, 2),
        (Slots(2, 2), Wanted(TWO, 2, 8.0), 0.0, 2),
        (Slots(2, 0), Wanted(TWO, 2, 8.0), 0.0, 2),  # Spark waits for those that other jobs have
        (Slots(1, 1), Wanted(TWO, 2, 8.0), 99.0, None),
        (Slots(1, 1), Wanted(ONE_TO_TWO, 2, 8.0), 7.9, None),  # the executor may be replaced
        (Slots(1, 1), Wanted(ONE_TO_TWO, 2, 8.0), 8.0, 1),
        (Slots(2, 2), Wanted(ONE_TO_TWO, 2, 8.0), 3.0, 2),  # it was
        (Slots(2, 2), Wanted(ONE_TO_TWO, 1, 8.0), 0.0, 2),
        (Slots(2, 1), Wanted(ONE_TO_TWO, 2, 2.0), 2.0, 1),
        (Slots(2, 0), Wanted(ONE_TO_TWO, 2, 2.0), 1.9, None),
        (Slots(2, 0), Wanted(ONE_TO_TWO, 2, 2.0), 2.0, 1),
        (Slots(0, 0), Wanted(ONE_TO_TWO, 2, 8.0), 99.0, None),
        (Slots(9, 9), Wanted(ONE_TO_TWO, 1, 8.0), 0.0, 2),
    ],
)
def test_ranks_follow_from_slots_and_time(
    slots: Slots | None, wanted: Wanted, waited_s: float, ranks: int | None
) -> None:
    assert ranks_for(slots, wanted, waited_s) == ranks


SAY_AFTER_S = room._SAY_AFTER_S


def test_a_wait_is_said_within_5_seconds() -> None:
    assert SAY_AFTER_S <= 5


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_EVERY_S", "_SAY_AFTER_S", "_WATCH_EVERY_S", "GROW_AFTER_S"):
        monkeypatch.setattr(room, name, 0.02)


def looks(*found: Slots | None) -> Callable[[], Slots | None]:
    """What is found one after the other; the last for ever."""
    left: Iterator[Slots | None] = iter(found)
    return lambda: next(left, found[-1])


def test_a_wait_is_said_and_ends_when_there_is_room() -> None:
    said: list[tuple[Slots, bool]] = []
    ranks = wait_for_room(
        looks(*[Slots(1, 0)] * 6, Slots(2, 2)),
        Wanted(TWO, 2, 8.0),
        pause_s=0.0,
        limit_s=20.0,
        say=lambda slots, waited_s, again: said.append((slots, again)),
        go_on=lambda: None,
    )
    assert (ranks, said) == (2, [(Slots(1, 0), False)]), "once in 30 seconds"


def test_a_wait_has_an_end() -> None:
    with pytest.raises(NotEnoughSlotsError, match="2 ranks need as many task slots.*has 1 .*0.1 s.*start_timeout_s"):
        wait_for_room(
            looks(Slots(1, 1)),
            Wanted(TWO, 2, 8.0),
            pause_s=0.0,
            limit_s=0.1,
            say=lambda *place: None,
            go_on=lambda: None,
        )


@pytest.mark.parametrize("slots", [None, Slots(2, 2)])
def test_a_pause_is_kept_where_there_is_room(slots: Slots | None) -> None:
    calls = []
    wait_for_room(
        looks(slots),
        Wanted(TWO, 2, 8.0),
        pause_s=0.1,
        limit_s=0.05,
        say=lambda *place: pytest.fail("there is room"),
        go_on=lambda: calls.append(0),
    )
    assert len(calls) > 2, "whoever wants to end the wait is asked meanwhile"


def test_who_does_not_want_to_wait_any_more_is_heard() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_for_room(looks(None), Wanted(TWO, 2, 8.0), pause_s=99.0, limit_s=99.0, say=lambda *place: None, go_on=stop)


def test_room_that_stays_is_told_once() -> None:
    told: list[int] = []
    asked = threading.Event()
    flickers = [Slots(1, 1), Slots(2, 2), Slots(2, 1)]

    def ask(ranks: int) -> None:
        told.append(ranks)
        asked.set()

    with GrowthWatch(looks(*flickers, Slots(5, 5)), WorldSizes(1, 4), 1, ask) as watch:
        assert asked.wait(20)
        watch._thread.join(20)
        assert not watch._thread.is_alive(), "it does not ask again"
    assert told == [4]


@pytest.mark.parametrize("slots", [None, Slots(1, 1), Slots(2, 1)])
def test_where_there_is_no_room_nothing_is_asked(slots: Slots | None) -> None:
    seen = threading.Semaphore(0)

    def look() -> Slots | None:
        seen.release()
        return slots

    with GrowthWatch(look, ONE_TO_TWO, 1, lambda ranks: pytest.fail("there is no room")):
        for _ in range(5):
            assert seen.acquire(timeout=20)


def test_a_generation_of_the_most_ranks_is_not_watched() -> None:
    with GrowthWatch(lambda: pytest.fail("nobody has to look"), ONE_TO_TWO, 2, print) as watch:
        assert watch._thread.ident is None
