"""Gangs get slots in the order in which they came, and nobody waits for what cannot come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from hvdspark.launch import line
from hvdspark.launch.line import Line, Waiting

SOON_S = 20.0


class Gangs:
    """Gangs in threads of their own, each of which holds its slots until it is told to leave."""

    def __init__(self, line: Line, total: Callable[[], int | None]) -> None:
        self.line, self.total = line, total
        self.entered: queue.Queue[str] = queue.Queue()
        self.said: queue.Queue[tuple[str, Waiting]] = queue.Queue()
        self._leave: dict[str, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def come(self, name: str, slots: int) -> None:
        leave = self._leave[name] = threading.Event()

        def run() -> None:
            with self.line.turn(slots, self.total, lambda place: self.said.put((name, place))):
                self.entered.put(name)
                assert leave.wait(SOON_S)

        thread = threading.Thread(target=run)
        self._threads.append(thread)
        thread.start()

    def come_and_wait(self, name: str, slots: int) -> Waiting:
        """Come behind others; returns what is said of the wait."""
        self.come(name, slots)
        who, place = self.said.get(timeout=SOON_S)
        assert who == name
        return place

    def leave(self, name: str) -> None:
        self._leave[name].set()

    def all_leave(self) -> None:
        for event in self._leave.values():
            event.set()
        for thread in self._threads:
            thread.join(SOON_S)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def said_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SAY_AFTER_S", "_LOOK_EVERY_S"):
        monkeypatch.setattr(line, name, 0.05)


@pytest.fixture
def gangs() -> Iterator[Gangs]:
    found = Gangs(Line(), lambda: 4)
    yield found
    found.all_leave()


def entered(gangs: Gangs) -> str:
    return gangs.entered.get(timeout=SOON_S)


def test_as_many_run_as_fit_and_the_rest_wait_their_turn(gangs: Gangs) -> None:
    for name in ("a", "b"):
        gangs.come(name, 2)
        assert entered(gangs) == name, "there is room for two"
    place = gangs.come_and_wait("c", 2)
    assert (place.slots, place.free, place.total, place.ahead) == (2, 0, 4, 2)
    assert 0.05 <= place.waited_s < SOON_S
    assert gangs.come_and_wait("d", 2).ahead == 3
    gangs.leave("b")
    assert entered(gangs) == "c", "the one that came first"
    assert gangs.entered.empty()
    gangs.leave("a")
    assert entered(gangs) == "d"


def test_a_small_gang_does_not_overtake_a_big_one(gangs: Gangs) -> None:
    gangs.come("small", 1)
    entered(gangs)
    assert gangs.come_and_wait("big", 4).free == 3
    assert gangs.come_and_wait("tiny", 1).ahead == 2
    assert gangs.entered.empty(), "it would fit, and the big one would wait for ever behind such"
    gangs.leave("small")
    assert entered(gangs) == "big"
    gangs.leave("big")
    assert entered(gangs) == "tiny"


def test_two_that_fit_together_start_together() -> None:
    gangs = Gangs(Line(), lambda: 4)
    gangs.come("big", 4)
    entered(gangs)
    gangs.come_and_wait("a", 2)
    gangs.come_and_wait("b", 2)
    gangs.leave("big")
    assert {entered(gangs), entered(gangs)} == {"a", "b"}
    gangs.all_leave()


def test_slots_that_come_later_are_used() -> None:
    slots = [2]
    gangs = Gangs(Line(), lambda: slots[0])
    gangs.come("a", 2)
    entered(gangs)
    gangs.come_and_wait("b", 2)
    slots[0] = 4
    assert entered(gangs) == "b", "an executor came, and nobody left"
    gangs.all_leave()


@pytest.mark.parametrize("total", [None, 1])
def test_alone_or_where_slots_are_unknown_nobody_waits(total: int | None) -> None:
    gangs = Gangs(Line(), lambda: total)
    gangs.come("a", 2)
    assert entered(gangs) == "a", "that there are too few is said elsewhere"
    if total is None:
        gangs.come("b", 2)
        assert entered(gangs) == "b"
    gangs.all_leave()


def test_who_gives_up_leaves_the_line(gangs: Gangs) -> None:
    gangs.come("a", 4)
    entered(gangs)

    def interrupt(place: Waiting) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), gangs.line.turn(4, lambda: 4, interrupt):
        pytest.fail("there was no room")
    gangs.leave("a")
    gangs.come("b", 4)
    assert entered(gangs) == "b"


def test_a_thread_does_not_wait_for_itself() -> None:
    slots = Line()
    with slots.turn(4, lambda: 4, lambda place: None), slots.turn(4, lambda: 4, lambda place: pytest.fail("waits")):
        pass


def nobody_waits(place: Waiting) -> None:
    pytest.fail("there is room")


@pytest.mark.parametrize(("total", "others", "share"), [(8, 0, 5), (4, 0, 4), (4, 2, 2), (1, 0, 1), (None, 0, 5)])
def test_who_may_have_more_gets_what_others_leave(total: int | None, others: int, share: int) -> None:
    slots = Line()
    in_between = threading.Event()

    def hold_some() -> None:
        with slots.turn(others, lambda: total, nobody_waits):
            in_between.set()
            assert done.wait(SOON_S)

    done, thread = threading.Event(), threading.Thread(target=hold_some)
    if others:
        thread.start()
        assert in_between.wait(SOON_S)
    with slots.turn(1, lambda: total, nobody_waits, most=5) as held:
        assert slots._running[-1].slots == share
        if total is not None:
            assert held.share(total) == total - others
    done.set()
    if others:
        thread.join(SOON_S)


def test_who_shrinks_leaves_slots_to_others_and_does_not_grow_before_them(gangs: Gangs) -> None:
    with gangs.line.turn(1, lambda: 4, nobody_waits, most=4) as held:
        gangs.come_and_wait("b", 2)
        held.hold(3)
        assert held.share(4) == 3, "who waits has none"
        held.hold(2)
        assert entered(gangs) == "b"
        assert held.share(4) == 2
        gangs.leave("b")
    gangs.come("c", 4)
    assert entered(gangs) == "c"
