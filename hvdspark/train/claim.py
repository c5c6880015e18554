"""A run that has a name belongs to one driver at a time.

The claim is the run's lease with a heartbeat. Who finds one of a living process of this host refuses at once. Of
another host nobody can say whether a process lives, but whether its heart beats: that takes half a minute, and needs no
clocks that agree. Where two claim a run in the same moment, the one that wrote first finds the other's claim before it
starts ranks, or at its next heartbeat, and gives up.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from hvdspark.data.dataset import leases
from hvdspark.errors import ConfigurationError, StoreError
from hvdspark.store import Store

logger = logging.getLogger(__name__)

BEAT_S = 10.0
_BEATS = 3  # that may be late, as when a store is slow
_LOOK_EVERY_S = 1.0
_lock = threading.Lock()
_here: set[tuple[str, str]] = set()


class Claim:
    """This driver's claim to a run, while it lasts."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id, self._folder = store, run_id, f"{leases.RUNS}/{run_id}"
        self._token, self._beats = secrets.token_hex(8), 0

    def beat(self) -> None:
        """Renew it. Raises StoreError."""
        self._beats += 1
        leases.renew(self._store, self._folder, token=self._token, beat=self._beats)

    def check(self) -> None:
        """Raise ConfigurationError where another driver has claimed the run since. StoreError: nobody can say."""
        try:
            token = leases.read(self._store, self._folder)["token"]
        except (ValueError, KeyError, TypeError):  # a damaged one is written again by the next beat
            return
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return  # as is one that somebody has deleted
            raise
        if token != self._token:
            raise _taken(self._run_id, "another driver has claimed it at the same time")

    def end(self) -> None:
        """Give it up; never fails."""
        try:
            self.check()
            self._store.delete(leases.file_of(self._folder))
        except (StoreError, ConfigurationError) as error:  # it is of no process that lives, or another's
            logger.debug("the claim to run %s stays: %s", self._run_id, error)


@contextlib.contextmanager
def claimed(store: Store, run_id: str, on_lost: Callable[[str], None], beat_s: float = BEAT_S) -> Iterator[Claim]:
    """Claim a run for as long as the context lasts.

    Args:
        on_lost: called in a thread, with a reason, when another driver has claimed it.
        beat_s: seconds from one heartbeat to the next.

    Raises:
        ConfigurationError: somebody else has it.
        StoreError: the store cannot be read or written.
    """
    key = (store.uri, run_id)
    with _lock:
        if key in _here:
            raise _taken(run_id, "another fit of this process has that name")
        _here.add(key)
    try:
        _refuse_if_it_lives(store, run_id, beat_s)
        claim, over = Claim(store, run_id), threading.Event()
        claim.beat()
        thread = threading.Thread(
            target=_keep_beating, args=(claim, over, on_lost, beat_s), name="hvdspark-claim", daemon=True
        )
        thread.start()
        try:
            yield claim
        finally:
            over.set()
            thread.join()
            claim.end()
    finally:
        with _lock:
            _here.discard(key)


def _keep_beating(claim: Claim, over: threading.Event, on_lost: Callable[[str], None], beat_s: float) -> None:
    while not over.wait(beat_s):
        try:
            claim.check()
            claim.beat()
        except ConfigurationError as error:
            on_lost(error.what)
            return
        except StoreError as error:
            logger.warning("the claim to a run could not be renewed: %s", error)


def _refuse_if_it_lives(store: Store, run_id: str, beat_s: float) -> None:
    found = _found(store, run_id)
    if found is None or leases.is_own(found) or (not leases.is_foreign(found) and leases.is_abandoned(found)):
        return
    if not leases.is_foreign(found):
        raise _taken(run_id, f"process {found['pid']} of this host is at it")
    logger.warning("run %s was begun on another host; looking for %.0f s whether it goes on", run_id, _BEATS * beat_s)
    deadline = time.monotonic() + _BEATS * beat_s
    while time.monotonic() < deadline:
        time.sleep(min(_LOOK_EVERY_S, beat_s / 2))  # there is no event for what happens in a store
        now = _found(store, run_id)
        if now is None:
            return  # it has just ended
        if _pulse(now) != _pulse(found):
            raise _taken(run_id, "a process of another host is at it")


def _found(store: Store, run_id: str) -> dict[str, Any] | None:
    """The lease of a run; None where there is none that says who has it."""
    path = f"{leases.RUNS}/{run_id}"
    if not store.exists(leases.file_of(path)):
        return None
    try:
        lease = leases.read(store, path)
        leases.is_abandoned(lease)
    except (ValueError, KeyError, TypeError):
        return None
    return lease


def _pulse(lease: dict[str, Any]) -> tuple[Any, Any, Any]:
    return lease.get("token"), lease.get("beat"), lease["used"]


def _taken(run_id: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"the run is being trained already: {why}",
        value=run_id,
        where="run_id",
        hint="wait until that fit has ended, or give another name",
    )
