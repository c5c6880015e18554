"""How long others have been silent, by a clock that stands still while whoever looks at it does. No threads here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# A limit is looked at so often while it runs.
LOOKS = 10


class AwakeClock:
    """Seconds during which this process ran.

    A process that was itself stopped, swapped out or on a suspended machine has heard nobody, which says nothing about
    the others: between two calls no more than `most_s` passes.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s, self._clock = most_s, clock
        self._last, self._awake_s = clock(), 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            now = self._clock()
            self._awake_s += min(now - self._last, self._most_s)
            self._last = now
            return self._awake_s


class Silence(Generic[K]):
    """Since when nothing has been heard of each of some others. Not thread-safe.

    Args:
        who: silent from now on.
    """

    def __init__(self, who: Iterable[K], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard_s = dict.fromkeys(who, clock())

    def heard(self, who: K) -> None:
        self._heard_s[who] = self._clock()

    def forget(self, who: K) -> None:
        self._heard_s.pop(who, None)

    def seconds(self) -> dict[K, float]:
        """For which each has been silent."""
        now = self._clock()
        return {who: now - heard for who, heard in self._heard_s.items()}


def look_every_s(limit_s: float) -> float:
    """How often to look whether something has lasted for `limit_s` seconds."""
    return min(limit_s / LOOKS, 5.0)
