"""Who is ready, who has ended and how, who is still there; and from that, whether the gang must stop."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.launch.liveness import Liveness, SignOfLife

# Time for the culprit's own report to arrive after that of a victim.
GRACE_S = 2.0


@dataclass(frozen=True)
class StopCause:
    """Why a rank is ended by something outside it.

    Attributes:
        kind: "stopped" | "start_timeout" | "stalled".
        cause: one line.
        rank: that it is about, where it is about one.
    """

    kind: str
    cause: str
    rank: int | None = None


# Ranks that end with others of their own accord: the rest is given time to do so, too.
_TOGETHER = ("peer_lost", "preempted")
_OF_ANOTHER = StopCause("stopped", "stopped because another rank failed")


@dataclass(frozen=True)
class Outcome:
    """How one rank ended, as plain data: rank process -> task -> driver.

    Attributes:
        status: "ok", "failed" (by itself), or "aborted" (ended by something outside it).
        kind: of a failure "exception" | "exit" | "signal" | "stalled" | "peer_lost" | "preempted"; of an abort that of
            its `StopCause`.
        cause: one line: exception type and message, signal, exit code, or why it was aborted.
        traceback: the rank's own, where there is one.
        tail: the last lines of its output, unless it is "ok".
        error: the HvdSparkError that it raised, if it was one: cloudpickled, in hexadecimal digits.
        order: how many ranks had reported to the gang's server before; None where the server was not reached.
        host: name of its host.
        ended_at_s: seconds since 1970 by the clock of its host.
        step: that it began last (`RankContext.reached`); None where it has said nothing of steps.
        about: of an abort the rank of its `StopCause`.
        result: what its function returned, cloudpickled. Travels beside the rest.
    """

    status: str
    kind: str = ""
    cause: str = ""
    traceback: str = ""
    tail: str = ""
    error: str = ""
    order: int | None = None
    host: str = ""
    ended_at_s: float = 0.0
    step: int | None = None
    about: int | None = None
    result: bytes = b""

    def without_result(self) -> dict[str, Any]:
        """The rest, JSON-able, by name."""
        return {name: value for name, value in vars(self).items() if name != "result"}


class Outcomes:
    """Thread-safe. It decides when the ranks that still run must stop:

    * a rank that failed by itself stops the others at once;
    * a rank that failed because a peer vanished (`peer_lost`) only does so after `grace_s`, so that the victim is not
      blamed; nor does one that has made room (`preempted`), because the others are about to do so;
    * a gang of which some ranks are not ready within `start_timeout_s` stops as a whole;
    * so does one of which a task is silent, or whose ranks all wait in an exchange that does not get on, for
      `stall_timeout_s` (`liveness`).

    Attributes:
        liveness: who is heard of.
    """

    def __init__(
        self,
        size: int,
        grace_s: float = GRACE_S,
        start_timeout_s: float | None = None,
        stall_timeout_s: float = math.inf,
    ) -> None:
        self.liveness = Liveness(size, stall_timeout_s)
        self._size, self._grace_s = size, grace_s
        self._by_rank: dict[int, Outcome] = {}
        self._ready: set[int] = set()
        self._began_s = time.monotonic()
        self._heard_s = dict.fromkeys(range(size), self._began_s)
        self._start_timeout_s = start_timeout_s
        self._first_of_several_s: float | None = None
        self._cause: StopCause | None = None
        self._closed = False
        self._changed = threading.Condition()

    def record(self, rank: int, outcome: Outcome) -> int:
        """Note the outcome of a rank, of which status and kind are read; the first one counts.

        Returns:
            How many ranks had reported before this one: an order that needs no clocks.

        Raises:
            ValueError: there is no such rank.
        """
        self._check(rank)
        with self._changed:
            if rank not in self._by_rank:
                self._by_rank[rank] = outcome
                self.liveness.over(rank)
                if outcome.status == "failed":
                    if outcome.kind not in _TOGETHER:
                        self._stop(_OF_ANOTHER)
                    elif self._first_of_several_s is None:
                        self._first_of_several_s = time.monotonic()
                self._changed.notify_all()
            return list(self._by_rank).index(rank)

    def met(self, hosts: Sequence[str]) -> None:
        """The tasks have met, on these hosts by rank: from now on each is to give signs of life, also one that is
        frozen before its first."""
        with self._changed:
            self.liveness.hosts = hosts
            self.liveness.begin()

    def heard(self, rank: int) -> None:
        """Note that the task of `rank` is alive."""
        with self._changed:
            if rank in self._heard_s:
                self._heard_s[rank] = time.monotonic()

    def alive(self, rank: int, sign: SignOfLife) -> None:
        """Note what the task of `rank` says of it. ValueError where there is no such rank."""
        self._check(rank)
        self.heard(rank)
        with self._changed:
            if rank not in self._by_rank:
                self.liveness.heard(rank, sign)
                self._look()

    def ready(self, rank: int) -> None:
        """Note that `rank` waits for the others to call `hvd.init` together. ValueError where there is no such rank."""
        self._check(rank)
        with self._changed:
            complete = self._complete()
            self._ready.add(rank)
            if self._complete() and not complete:
                self.liveness.begin()
            self._changed.notify_all()

    def all_ready(self, wait_s: float) -> bool:
        """Whether every rank is ready; waits up to `wait_s` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._complete() or self._closed, wait_s)
            return self._complete()

    def must_stop(self, wait_s: float) -> bool:
        """Whether the ranks that still run must stop; waits up to `wait_s` seconds for that to become true."""
        return self.stop_cause(wait_s) is not None

    def stop_cause(self, wait_s: float) -> StopCause | None:
        """Why the ranks that still run must stop; None where they must not. Waits, too."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            while True:
                now = time.monotonic()
                decisions = self._pending()
                for due, cause in decisions:
                    if now >= due:
                        self._stop(cause)
                self._look()
                if self._cause is not None or self._closed or now >= deadline:
                    return self._cause
                look = now + self.liveness.look_in_s
                self._changed.wait(min([deadline, look, *(due for due, _ in decisions)]) - now)

    def wait_all(self, wait_s: float) -> bool:
        """Whether every rank has an outcome; waits up to `wait_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._by_rank) == self._size, wait_s)

    def has(self, rank: int | None) -> bool:
        """Whether `rank` has an outcome."""
        with self._changed:
            return rank in self._by_rank

    def rest_is_silent(self, silent_s: float) -> bool:
        """Whether nothing was heard for `silent_s` seconds of any rank without an outcome: their tasks are over."""
        limit = time.monotonic() - silent_s
        with self._changed:
            return all(heard < limit for rank, heard in self._heard_s.items() if rank not in self._by_rank)

    def close(self) -> None:
        """Release every waiting thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self, rank: int) -> None:
        if not 0 <= rank < self._size:
            raise ValueError(f"rank {rank} of {self._size}")

    def _complete(self) -> bool:
        return len(self._ready) == self._size

    def _look(self) -> None:
        if self._cause is None and (stall := self.liveness.verdict()) is not None:
            self._stop(StopCause("stalled", stall.cause, stall.rank))

    def _stop(self, cause: StopCause) -> None:
        if self._cause is None:
            self._cause = cause
            self._changed.notify_all()

    def _pending(self) -> list[tuple[float, StopCause]]:
        """(when, why) the gang must stop if nothing else happens until then."""
        pending = []
        if self._first_of_several_s is not None:
            pending.append((self._first_of_several_s + self._grace_s, _OF_ANOTHER))
        if self._start_timeout_s is not None and not self._complete():
            missing = sorted(set(range(self._size)) - self._ready)
            cause = f"ranks {missing[:20]} were not ready to train after {self._start_timeout_s:g} s"
            pending.append((self._began_s + self._start_timeout_s, StopCause("start_timeout", cause)))
        return pending
