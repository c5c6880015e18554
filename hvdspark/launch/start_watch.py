"""Whether the tasks of a gang have started, and which of them are not heard of any more. Driver side."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hvdspark.errors import RankFailedError, StartTimeoutError
from hvdspark.launch.protocol import Heard, Located, Slots

logger = logging.getLogger(__name__)

Event = dict[str, Any]
# After this long without tasks, say so; a gang usually starts within 5 seconds.
_PATIENCE_S = 15.0
_ASK_EVERY_S = 0.5
# Sooner, and again, where others have the slots.
_BUSY_AFTER_S = 3.0
_BUSY_EVERY_S = 30.0
# An executor is gone for longer than this. Spark itself would look for slots every 15 s
# (spark.scheduler.barrier.maxConcurrentTasksCheck.interval).
_GONE_AFTER_S = 2.0


class StartWatch:
    """Cancels a gang whose tasks do not start in time.

    That they have started is learned from the launcher, or from a task that reports over the channel, whichever comes
    first. Spark starts the tasks of a barrier stage together, so one of them is enough.
    """

    def __init__(self, size: int, on_event: Callable[[Event], None]) -> None:
        self._size, self._forward = size, on_event
        self._connected: dict[int, Located] = {}
        self._lost: dict[int, Located] = {}
        self._timed_out_after_s: float | None = None
        self._too_few: str | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def on_event(self, event: Event) -> None:
        """Called by the channel."""
        if event.get("event") == "started":
            with self._lock:
                self._connected[event["rank"]] = _located(event)
                self._lost.pop(event["rank"], None)  # it was only cut off for a moment
        elif event.get("event") != "bye":
            self._forward(event)

    def on_lost(self, hello: Event) -> None:
        """Called by the channel."""
        if hello.get("event") == "started":
            with self._lock:
                self._lost[hello["rank"]] = _located(hello)

    def begin(
        self,
        timeout_s: float,
        has_begun: Callable[[], bool | None],
        cancel: Callable[[], Any],
        slots: Callable[[], Slots | None] = lambda: None,
    ) -> None:
        """Call `cancel` unless tasks run within `timeout_s` seconds, and where the slots for them have gone.

        Args:
            has_begun: whether tasks of the gang run or have run; None while nobody knows: then there is no limit.
            slots: what the gang could have.
        """
        wait = _WaitForSlots(self._size, self._forward)

        def watch() -> None:
            began_s, patient = time.monotonic(), True
            while not self._started() and (begun := self._ask(has_begun)) is not True:
                waited_s = time.monotonic() - began_s
                if waited_s >= timeout_s:
                    if begun is False:
                        self._timed_out_after_s = timeout_s
                        cancel()
                    return
                self._too_few = wait.too_few(slots(), waited_s) if begun is False else None
                if self._too_few is not None:
                    cancel()
                    return
                if patient and begun is False and waited_s >= _PATIENCE_S:
                    patient = False
                    logger.warning("0 of %d ranks have started after %g s; %s", self._size, _PATIENCE_S, _BUSY)
                if self._over.wait(min(_ASK_EVERY_S, max(0.0, timeout_s - waited_s))):
                    return

        self._thread = threading.Thread(target=watch, name="hvdspark-start-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def timed_out(self) -> StartTimeoutError | None:
        """Why the gang was cancelled, if it was."""
        if self._timed_out_after_s is None:
            return None
        return start_timeout(f"0 of {self._size} ranks started within {self._timed_out_after_s:g} s", _BUSY)

    def without_slots(self) -> RankFailedError | None:
        """Why the gang was cancelled, if it was because its slots had gone."""
        return None if self._too_few is None else RankFailedError(None, "unknown", self._too_few, kind="executor_lost")

    def heard(self) -> Heard:
        """What tasks have said so far."""
        with self._lock:
            return Heard(tuple(self._connected.values()), next(iter(self._lost.values()), None))

    def _started(self) -> bool:
        with self._lock:
            return bool(self._connected)

    def _ask(self, has_begun: Callable[[], bool | None]) -> bool | None:
        try:
            return has_begun()
        except Exception:  # the session ends; the job ends with it, and says why
            logger.debug("it cannot be told which tasks run", exc_info=True)
            return False


def _located(hello: Event) -> Located:
    return Located(hello["rank"], hello["host"], hello.get("partition"))


class _WaitForSlots:
    """Of tasks that have not begun: says that others have their slots, and finds out that these are there no more."""

    def __init__(self, size: int, report: Callable[[Event], None]) -> None:
        self._size, self._report = size, report
        self._enough_s, self._say_at_s = 0.0, _BUSY_AFTER_S

    def too_few(self, slots: Slots | None, waited_s: float) -> str | None:
        """Why these tasks will not begin; None where they may."""
        if slots is None or slots.total >= self._size:
            self._enough_s = waited_s
        elif waited_s - self._enough_s >= _GONE_AFTER_S:
            return f"before its tasks began, there were {slots.total} task slots for {self._size} ranks"
        if slots is not None and slots.free < self._size and waited_s >= self._say_at_s:
            again = self._say_at_s > _BUSY_AFTER_S
            level = logging.INFO if again else logging.WARNING
            logger.log(level, "waiting for %d slots, %d free; %.0f s so far", self._size, slots.free, waited_s)
            place = {"slots": self._size, "free": slots.free, "total": slots.total, "ahead": 0, "waited_s": waited_s}
            self._report({"event": "waiting", **place, "again": again})
            self._say_at_s = waited_s + _BUSY_EVERY_S
        return None


_BUSY = "other jobs may hold the slots"
SLOW = "a rank may be slow to import its packages (a cold or remote disk), or its host may hang"


def start_timeout(what: str, why: str) -> StartTimeoutError:
    return StartTimeoutError(
        what,
        where="start_timeout_s",
        hint=f"{why}; `hvdspark doctor` shows the free slots, and start_timeout_s is the limit",
    )
