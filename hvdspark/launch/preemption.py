"""Asking ranks to make room: all of them stop after the same step, with a checkpoint, and nobody is killed.

The driver asks (`Preemption`), because a user does, or because Spark takes executors away. The word travels over the
channel to the tasks, and from there as a frame to the ranks. A platform may also send SIGTERM to a rank. A rank hears
it as a `Notice`, which user code sees as `context().preempted()`; what all ranks then do together is up to what they
run. Training stops at its next decision point.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from hvdspark.errors import PreemptedError

Hear = Callable[[str], None]


class Preemption:
    """The driver's word to the ranks of one program, which may be given before there are any. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._for_good = False
        self._hearers: list[Hear] = []

    @property
    def reason(self) -> str | None:
        """Why it was asked for, in a few words; None where it was not."""
        return self._reason

    @property
    def for_good(self) -> bool:
        """Whether nobody wants to go on later."""
        return self._for_good

    def ask(self, reason: str, *, for_good: bool = False) -> None:
        """Ask the ranks to stop. The first reason stays. Returns at once."""
        with self._lock:
            self._for_good = self._for_good or for_good
            if self._reason is not None:
                return
            self._reason, hearers = reason, list(self._hearers)
        for hear in hearers:
            hear(reason)

    def go_on(self) -> None:
        """For who waits for ranks to start: raise PreemptedError where they are to make room already."""
        if self._reason is not None:
            raise PreemptedError("the ranks were to make room before they were started", value=self._reason)

    @contextlib.contextmanager
    def told_to(self, hear: Hear) -> Iterator[None]:
        """Call `hear(reason)` once it is asked for, in whatever thread, for as long as the context lasts."""
        with self._lock:
            self._hearers.append(hear)
            reason = self._reason
        try:
            if reason is not None:
                hear(reason)
            yield
        finally:
            with self._lock:
                self._hearers.remove(hear)


class Notice:
    """A rank's ear: whether it was asked to make room.

    Attributes:
        reason: why, in a few words; "" where it was not.
        heeded: whether what runs here looks at it, and so will stop by itself.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.heeded = False
        self._process = os.getpid()

    def give(self, reason: str) -> None:
        """Ask this rank. The first reason stays."""
        self.reason = self.reason or reason

    def listen_to_sigterm(self) -> None:
        """Take SIGTERM for the question where it is heeded; else it ends this process as ever. Main thread only."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, *_: object) -> None:
        if self.heeded and os.getpid() == self._process:  # not of a process that was forked from this one
            self.give("SIGTERM was sent to a rank")
            return
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
