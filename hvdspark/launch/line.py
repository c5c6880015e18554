"""The gangs of this process line up for the task slots of an application: first come, first served.

Spark starts the tasks of a barrier stage together or not at all, and knows no order among stages that wait: a gang that
came later may overtake, and one that waits for hours behind another looks, to the start timeout, like one that never
gets slots. So a gang is given to Spark when there is room for it beside those of this process that run. Slots that
others hold (jobs of Spark itself, or of another process) are not seen here; Spark waits for those, within the start
timeout.

A wait is as long as what is ahead: gangs that run, each of which ends by itself, by an error or with the process.

A gang whose number of ranks may change takes what is there when it is its turn, and holds more or fewer slots later:
never more while others wait, who have none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_SAY_AFTER_S = 1.0  # a gang that waits for less is not worth a word
_SAY_EVERY_S = 30.0
# Executors come and go; a gang that leaves is heard of at once.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Waiting:
    """Where a gang stands.

    Attributes:
        slots: that it needs at once.
        free: slots that no gang of this process has.
        total: slots of the application.
        ahead: gangs that run, or wait and came before.
        waited_s: seconds since it came.
        again: whether this was said of it before.
    """

    slots: int
    free: int
    total: int
    ahead: int
    waited_s: float
    again: bool


@dataclass(eq=False)
class _Gang:
    slots: int  # it waits for these at least; when it runs, it holds them
    most: int
    thread: int
    came_s: float


class Held:
    """The slots of a gang that runs. Every method may be called from any thread."""

    def __init__(self, line: Line, gang: _Gang) -> None:
        self._line, self._gang = line, gang

    def share(self, total: int) -> int:
        """How many of the application's slots this gang may have: what others that run leave it. While others wait, no
        more than it holds."""
        return self._line._share(self._gang, total)

    def hold(self, slots: int) -> None:
        """Hold so many from now on."""
        self._line._resize(self._gang, slots)


class Line:
    """Gangs of one application. Every method may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[_Gang] = []
        self._running: list[_Gang] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def turn(
        self, slots: int, total: Callable[[], int | None], on_wait: Callable[[Waiting], None], most: int | None = None
    ) -> Iterator[Held]:
        """Hold `slots` slots for as long as the context lasts, which is entered when it is this gang's turn.

        A thread that holds slots already is not made to wait: what it waited for could be itself.

        Args:
            total: how many slots the application has now; None where nobody can say: then nobody waits.
            on_wait: told after a second and then every 30 seconds, in this thread.
            most: hold so many where they are there; `slots`, if None.
        """
        gang = _Gang(slots, most or slots, threading.get_ident(), self._clock())
        with self._changed:
            self._waiting.append(gang)
        try:
            self._wait(gang, total, on_wait)
            yield Held(self, gang)
        finally:
            with self._changed:
                for gangs in (self._waiting, self._running):
                    if gang in gangs:
                        gangs.remove(gang)
                self._changed.notify_all()

    def _wait(self, gang: _Gang, total: Callable[[], int | None], on_wait: Callable[[Waiting], None]) -> None:
        say_at_s, said = gang.came_s + _SAY_AFTER_S, False
        while True:
            there_are = total()  # of the JVM: not while others are kept from leaving
            with self._changed:
                if self._may_go(gang, there_are):
                    self._waiting.remove(gang)
                    left = gang.most if there_are is None else there_are - self._taken()
                    gang.slots = max(gang.slots, min(gang.most, left))
                    self._running.append(gang)
                    self._changed.notify_all()  # the next one in line may fit beside it
                    return
                if (left_s := say_at_s - self._clock()) > 0:
                    self._changed.wait(min(_LOOK_EVERY_S, left_s))
                    continue
                place = self._place(gang, there_are or 0, said)
            on_wait(place)
            say_at_s, said = self._clock() + _SAY_EVERY_S, True

    def _may_go(self, gang: _Gang, total: int | None) -> bool:
        if total is None or any(other.thread == gang.thread for other in self._running):
            return True
        if self._waiting[0] is not gang:
            return False
        # Alone it may always go: where the slots are too few for it, Spark and its caller know more about why.
        return not self._running or self._taken() + gang.slots <= total

    def _place(self, gang: _Gang, total: int, again: bool) -> Waiting:
        ahead = len(self._running) + self._waiting.index(gang)
        return Waiting(gang.slots, max(0, total - self._taken()), total, ahead, self._clock() - gang.came_s, again)

    def _share(self, gang: _Gang, total: int) -> int:
        with self._changed:
            others = sum(other.slots for other in self._running if other.thread != gang.thread)
            left = max(0, total - others)
            return min(left, gang.slots) if self._waiting else left

    def _resize(self, gang: _Gang, slots: int) -> None:
        with self._changed:
            gang.slots = slots
            self._changed.notify_all()

    def _taken(self) -> int:
        return sum(gang.slots for gang in self._running)
