"""A bounded queue and the thread that empties it, so that no fit waits for who takes the entries."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from hvdspark.tracking.batches import Batch, Request, entries_of, requests_of
from hvdspark.tracking.entries import Curve, Entry, Metric, Param, Rows, Status, Tag, Text, without_passwords

logger = logging.getLogger(__name__)

_AT_ONCE = 2000  # entries that are taken from the queue together
_NAMES: dict[type[Entry], tuple[str, str]] = {
    Param: ("Param", "Params"),
    Tag: ("tag", "tags"),
    Metric: ("metric value", "metric values"),
    Rows: ("dataset", "datasets"),
    Text: ("text", "texts"),
    Curve: ("figure", "figures"),
}


class Sink(Protocol):
    """Who takes the entries of a fit. Called in the writer's thread alone, and may take as long as it likes."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    def open(self) -> None:
        """Get ready; before everything else."""

    def write(self, request: Request) -> None:
        """Take a request."""

    def close(self, status: Status, lost: str) -> None:
        """Nothing more comes; what was lost is "" where that is nothing."""

    def may_pass(self, error: Exception) -> bool:
        """Whether the same call may succeed later."""


@dataclass(frozen=True)
class Patience:
    """Seconds, and how much is kept.

    Attributes:
        capacity: entries in the queue.
        gather_s: how long entries are gathered for a request.
        retry_s: pause after what may pass; doubled each time, up to `longest_retry_s`.
        grace_s: how long the end of a fit waits for what is left.
        exit_s: how long the end of the process does.
    """

    capacity: int = 20_000
    gather_s: float = 1.0
    retry_s: float = 2.0
    longest_retry_s: float = 60.0
    grace_s: float = 3.0
    exit_s: float = 10.0


PATIENCE = Patience()


class Writer:
    """Writes entries in a thread of its own, which ends some time after `finish`.

    While the sink fails in a way that may pass, entries wait, and the same batch is tried again. After `finish` each
    is tried once more; when that fails, the rest is lost. Datasets and files are tried once, and lost alone. There is
    one warning of the first thing that is wrong, and at the end one of what is lost.
    """

    def __init__(self, sink: Sink, patience: Patience = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink, self._patience, self._clock = sink, patience, clock
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque()
        self._taken: deque[Request] = deque()  # by the thread, which alone looks at it
        self._lost: Counter[type[Entry]] = Counter()
        self._status: Status | None = None
        self._busy_since: float | None = None
        self._given_up = self._said = False
        self._reason = "the queue was full"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hvdspark-{sink.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, entries: Iterable[Entry]) -> None:
        """Have entries written. Never waits: where there is no room, spare ones are lost first."""
        with self._changed:
            for entry in entries:
                if self._given_up or not self._make_room(entry):
                    self._lost[type(entry)] += 1
                else:
                    self._waiting.append(entry)
            self._changed.notify_all()

    def finish(self, status: Status) -> None:
        """Nothing more comes. Waits for what is left, at most `grace_s` from when the sink was last heard of; a sink
        that takes longer is waited for at the end of the process."""
        with self._changed:
            self._status = status
            self._changed.notify_all()
            silent = 0.0 if self._busy_since is None else self._clock() - self._busy_since
        self._over.wait(max(0.0, self._patience.grace_s - silent))
        if not self._over.is_set():
            atexit.register(self._at_exit)
            self._say("has not taken everything yet, what is left is written while the program goes on")
        if self._over.is_set():  # meanwhile
            atexit.unregister(self._at_exit)

    def _make_room(self, entry: Entry) -> bool:
        if len(self._waiting) < self._patience.capacity:
            return True
        if _is_spare(entry):
            return False
        place = next((place for place, other in enumerate(self._waiting) if _is_spare(other)), None)
        if place is None:
            return False
        self._lost[type(self._waiting[place])] += 1
        del self._waiting[place]
        return True

    def _run(self) -> None:
        if self._tried(self._sink.open):
            while self._take():
                while self._taken:
                    request = self._taken[0]
                    # What is no batch may go elsewhere: a store of artifacts that is not there delays no metric.
                    if not self._tried(partial(self._sink.write, request), again=isinstance(request, Batch)):
                        self._count_as_lost(entries_of(request))
                    self._taken.popleft()
        self._give_up()
        with self._changed:
            self._changed.wait_for(lambda: self._status)
            status, lost = self._status, self._what_is_lost()
        assert status is not None
        if lost:
            logger.warning("%s did not take everything; lost: %s (%s)", self._sink.name, lost, self._reason)
        try:
            self._sink.close(status, lost)
        except Exception as error:
            self._say_error(error)
        self._over.set()
        atexit.unregister(self._at_exit)

    def _take(self) -> bool:
        """Wait for entries and gather some; False when there are no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._status)
            self._changed.wait_for(lambda: self._status, self._patience.gather_s)
            entries = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
        self._taken.extend(requests_of(entries))
        return bool(entries) and not self._given_up

    def _tried(self, call: Callable[[], None], *, again: bool = True) -> bool:
        """Call until it succeeds, or once where it is not to be tried again; False if it does not, or all is over."""
        pause = self._patience.retry_s
        while not self._given_up:
            last = self._status is not None
            self._busy_since = self._clock()
            try:
                call()
                return True
            except Exception as error:
                self._say_error(error)
                if not (again and self._sink.may_pass(error)):
                    return False
            finally:
                self._busy_since = None
            if last:
                self._give_up()
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._status, pause)
                pause = min(2 * pause, self._patience.longest_retry_s)
        return False

    def _give_up(self) -> None:
        with self._changed:
            self._given_up = True
            self._count_as_lost(self._waiting)
            self._waiting.clear()
            for request in list(self._taken)[1:]:  # the first is counted by who tried it
                self._count_as_lost(entries_of(request))
            while len(self._taken) > 1:
                self._taken.pop()

    def _count_as_lost(self, entries: Iterable[Entry]) -> None:
        self._lost.update(type(entry) for entry in entries)

    def _what_is_lost(self) -> str:
        """ "3 Params, 1 figure"; "" where nothing is."""
        counts = [(self._lost[kind], *names) for kind, names in _NAMES.items() if self._lost[kind]]
        return ", ".join(f"{count:,} {one if count == 1 else many}" for count, one, many in counts)

    def _say_error(self, error: Exception) -> None:
        self._reason = without_passwords(f"{type(error).__name__}: {error}")
        self._say(f"failed, the fit goes on: {self._reason}")

    def _say(self, text: str) -> None:
        """Warn once of what comes first."""
        if not self._said:
            self._said = True
            logger.warning("%s %s", self._sink.name, text)

    def _at_exit(self) -> None:
        if not self._over.wait(self._patience.exit_s):
            with self._changed:
                self._count_as_lost(self._waiting)
                for request in list(self._taken):
                    self._count_as_lost(entries_of(request))
            logger.warning("%s did not answer; lost: %s", self._sink.name, self._what_is_lost() or "the end of the run")


def _is_spare(entry: Entry) -> bool:
    return isinstance(entry, Metric) and entry.spare
