"""Whether a gang still answers, as the driver hears it on the channel.

The server of the gang, in the task of rank 0, knows best who is silent (`liveness`). The driver is needed where nobody
is left who could say so, and to end the job, which a task that is frozen keeps from ending. Without a channel it knows
nothing, and the job ends because the other tasks fail (`task.run_task`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from hvdspark.errors import RankFailedError
from hvdspark.launch.silence import AwakeClock, Silence, look_every_s

logger = logging.getLogger(__name__)

Event = dict[str, Any]
# How long a gang that knows that it is stalled may take to end by itself, with the last words of its ranks.
_LAST_WORDS_S = 2.0
_LOOK_EVERY_S = 0.5


class GangWatch:
    """Cancels the job of a gang that is stalled. Driver side.

    Tasks say {"event": "alive", "rank", "server_s": seconds since the server answered},
    {"event": "stalled", "by", "rank", "cause"} and {"event": "over", "rank"}.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._clock = AwakeClock(3 * look_every_s(limit_s))
        self._silence: Silence[int] = Silence((), self._clock)
        self._server_s: dict[int, float] = {}
        self._hosts: dict[int, str] = {}
        self._told: tuple[float, RankFailedError] | None = None  # when tasks said why the gang is stalled
        self._found: RankFailedError | None = None
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def on_event(self, event: Event) -> bool:
        """Called by the channel with every event; whether it was for nobody else."""
        kind, rank = event.get("event"), event.get("rank")
        with self._lock:
            if kind == "started":
                self._hosts[event["rank"]] = event["host"]
            if kind == "over":
                self._silence.forget(event["rank"])
            elif kind == "stalled":
                self._stalled(event)
            elif isinstance(rank, int):
                self._silence.heard(rank)
            if kind == "alive":
                self._server_s[event["rank"]] = event["server_s"]
        return kind in ("alive", "over", "stalled")

    def begin(self, cancel: Callable[[], Any]) -> None:
        """Call `cancel` once the gang is stalled."""

        def watch() -> None:
            while not self._over.wait(min(_LOOK_EVERY_S, look_every_s(self._limit_s))):
                with self._lock:
                    self._found = self._verdict()
                if self._found is not None:
                    logger.warning("%s", self._found)
                    cancel()
                    return

        self._thread = threading.Thread(target=watch, name="hvdspark-gang-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def stalled(self) -> RankFailedError | None:
        """Why the job was cancelled, if it was."""
        return self._found

    def _stalled(self, event: Event) -> None:
        if self._told is None:
            rank, cause = event["rank"], str(event["cause"])
            heard = "" if rank is None else self._heard_here(rank)
            host = self._hosts.get(event["by"] if rank is None else rank, "unknown")
            self._told = self._clock(), RankFailedError(rank, host, f"{cause}{heard}", kind="stalled")

    def _heard_here(self, rank: int) -> str:
        silent_s = self._silence.seconds().get(rank)
        if silent_s is None:
            return ""
        return "; the driver hears of it" if silent_s < self._limit_s / 2 else "; nor does the driver hear of it"

    def _verdict(self) -> RankFailedError | None:
        now = self._clock()
        if self._told is not None:
            return self._told[1] if now - self._told[0] > _LAST_WORDS_S else None
        silent_s = self._silence.seconds()
        if silent_s.get(0, 0.0) <= self._limit_s:
            return None
        vouching = (r for r, s in silent_s.items() if r and max(s, self._server_s.get(r, s)) < self._limit_s / 2)
        if any(vouching):
            return None  # only the way between the driver and that task is cut
        others = sorted(rank for rank, seconds in silent_s.items() if rank and seconds > self._limit_s)
        also = f", nor of ranks {others[:20]}" if others else ""
        cause = f"the driver has not heard of its task for {self._limit_s:g} s{also}"
        cause += ": it was stopped, or its host hangs or cannot be reached"
        return RankFailedError(0, self._hosts.get(0, "unknown"), cause, kind="stalled")
