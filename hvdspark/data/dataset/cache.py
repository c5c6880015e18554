"""The datasets that this process has written, who still needs them, and what crashed processes left behind.

A dataset lives as long as somebody holds it: a fit that reads it, or the DataFrame that it was made from. When the last
holder goes, or the interpreter exits, its directory is deleted. A process that is killed cannot do that; so each
dataset has a lease (host, process id, start of that process) and whoever writes the next dataset into the same store
deletes those whose process is gone. Of another host that cannot be known, and the lease runs out after 14 days without
use; what is in use is renewed every hour. A run that is not finished has the same lease, in a folder of their own: the
store may hold thousands of models, and whoever writes into it should not have to look at each.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from hvdspark.errors import StoreError
from hvdspark.specs import DatasetSpec
from hvdspark.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

DATASETS = "datasets"
_LEASE = "lease.json"
_FOREIGN_LEASE_S = 14 * 24 * 3600.0
_RUNS = "runs"
_RUN_LEASES = "leases"
_MODEL = "model/manifest.json"
_START_TICKS = 19  # of what follows the name in /proc/<pid>/stat: field 22 of proc(5)
_RENEWAL_INTERVAL_S = 3600.0


@dataclass(eq=False)
class Entry:
    """One dataset, from the moment a thread starts to write it.

    Attributes:
        key: what must be equal to share it, besides the plan.
        same_plan: whether a prepared DataFrame gives the same rows.
        path: its directory, relative to the store.
        writer: the thread that writes it.
        holders: who needs it.
        spec: None until it is written.
        done: set when it is written, or given up.
        found: what was computed from its rows, by what it is.
        computing: held while something is.
    """

    store: Store
    key: Hashable
    same_plan: Callable[[Any], bool]
    path: str
    writer: threading.Thread
    holders: set[Hashable]
    spec: DatasetSpec | None = None
    done: threading.Event = dataclasses.field(default_factory=threading.Event)
    found: dict[Hashable, Any] = dataclasses.field(default_factory=dict)
    computing: threading.Lock = dataclasses.field(default_factory=threading.Lock)


# Reentrant: a DataFrame may be collected, and so release its dataset, while this thread is in here.
_lock = threading.RLock()
_entries: list[Entry] = []
# Tasks of a job that failed may still create files for a moment, so what was given up is deleted a second time.
_given_up: list[tuple[Store, str]] = []


def obtain(
    store: Store,
    key: Hashable,
    prepared: Any,
    same_plan: Callable[[Any], bool],
    holder: Hashable,
    write: Callable[[str], DatasetSpec],
) -> Entry:
    """The dataset of this key and plan, written by `write(path)` unless it is there already.

    One thread writes; others that want the same dataset at the same time wait for it. If it fails, each of them tries
    for itself. `holder` holds the dataset until it is released.
    """
    while True:
        with _lock:
            entry = next((entry for entry in list(_entries) if entry.key == key and entry.same_plan(prepared)), None)
            if entry is None:
                path = f"{DATASETS}/{uuid.uuid4().hex}"
                entry = Entry(store, key, same_plan, path, threading.current_thread(), {holder})
                _entries.append(entry)
                mine = True
            else:
                entry.holders.add(holder)
                mine = False
        if mine:
            _write(entry, write)
            return entry
        while not entry.done.wait(timeout=1.0):
            if not entry.writer.is_alive():
                _forget(entry)
        with _lock:  # it may have failed, been released just before we held it, or been deleted from outside
            usable = entry in _entries
        if usable and store.exists(f"{entry.path}/{_LEASE}"):
            _renew_lease(store, entry.path)
            return entry
        _forget(entry)


def kept_with(store: Store, path: str, key: Hashable, compute: Callable[[], T]) -> T:
    """What is computed from a dataset's rows: once for each key as long as the dataset lives.

    Args:
        path: of the dataset; one that this process does not hold is computed from each time.
    """
    with _lock:
        entry = next((entry for entry in _entries if (entry.store, entry.path) == (store, path)), None)
    if entry is None:
        return compute()
    with entry.computing:
        if key not in entry.found:
            entry.found[key] = compute()
        found: T = entry.found[key]
        return found


def hold_while_alive(entry: Entry, owner: object, *, newest_only: bool = False) -> None:
    """Keep the dataset as long as `owner` is alive; with `newest_only` no longer than until it has another one."""
    token = ("owner", id(owner))
    with _lock:
        before = [other for other in _entries if token in other.holders and other is not entry] if newest_only else []
        held = token in entry.holders or entry not in _entries
        if not held:
            entry.holders.add(token)
    if not held:
        weakref.finalize(owner, release, entry, token).atexit = False
    for other in before:
        release(other, token)


def release(entry: Entry, holder: Hashable) -> None:
    """Drop one holder; delete the dataset if it was the last."""
    with _lock:
        entry.holders.discard(holder)
        if entry.holders or entry not in _entries:
            return
        _entries.remove(entry)
    _delete(entry.store, entry.path)


def collect_leftovers(store: Store) -> None:
    """Delete the datasets and unfinished runs of processes that are gone, and what this process has given up."""
    with _lock:
        given_up, _given_up[:] = list(_given_up), []
    for owner, path in given_up:
        _delete(owner, path)
    leased_runs = [name.removesuffix(".json") for name in store.list(_RUN_LEASES)]
    for path in [f"{DATASETS}/{name}" for name in store.list(DATASETS)] + [f"{_RUNS}/{name}" for name in leased_runs]:
        with contextlib.suppress(StoreError, ValueError, KeyError, TypeError, OverflowError):  # no lease of ours
            if not _is_abandoned(store.read_json(_lease_file(path))):
                continue
            if store.exists(f"{path}/{_MODEL}"):  # all it lacks is that the lease was deleted
                logger.info("%s is a model although its fit did not return; delete it if it is not wanted", path)
                store.delete(_lease_file(path))
                continue
            logger.info("deleting %s, left behind by a process that is gone", store.spark_uri(path))
            _delete(store, path)


def _write(entry: Entry, write: Callable[[str], DatasetSpec]) -> None:
    try:
        _renew_lease(entry.store, entry.path)
        entry.spec = write(entry.path)
    except BaseException:
        _forget(entry)
        discard(entry.store, entry.path)
        raise
    finally:
        entry.done.set()


def _forget(entry: Entry) -> None:
    with _lock:
        if entry in _entries:
            _entries.remove(entry)
    entry.done.set()


def _delete(store: Store, path: str) -> None:
    # The lease goes last: if this is interrupted, somebody else can still see that it is garbage.
    try:
        store.delete(f"{path}/data")
        store.delete(path)
        store.delete(_lease_file(path))
    except StoreError as error:
        logger.warning("%s could not be deleted: %s", path, error)


@contextlib.contextmanager
def leased(store: Store, path: str) -> Iterator[None]:
    """While the context lasts, the run `path` is made by this process: should it be killed, others may delete it.

    That holds after an error, too, until the run is discarded.
    """
    _renew_lease(store, path)
    with renewed(store, path):
        yield
    try:
        store.delete(_lease_file(path))
    except StoreError as error:  # whoever finds the lease finds the model, too
        logger.warning("a lease could not be deleted: %s", error)


def discard(store: Store, path: str) -> None:
    """Delete a dataset or run that failed, and once more with the next dataset."""
    _delete(store, path)
    with _lock:
        _given_up.append((store, path))


@contextlib.contextmanager
def renewed(store: Store, path: str) -> Iterator[None]:
    """Keep the lease of `path` from running out while the context lasts."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEWAL_INTERVAL_S):
            try:
                _renew_lease(store, path)
            except StoreError as error:
                logger.warning("a lease could not be renewed: %s", error)

    thread = threading.Thread(target=renew, name="hvdspark-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _renew_lease(store: Store, path: str) -> None:
    lease = {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid()), "used": time.time()}
    store.write_text(_lease_file(path), json.dumps(lease))


def _lease_file(path: str) -> str:
    parent, _, name = path.partition("/")
    return f"{_RUN_LEASES}/{name}.json" if parent == _RUNS else f"{path}/{_LEASE}"


def _is_abandoned(lease: dict[str, Any]) -> bool:
    if lease["host"] != _host():
        return time.time() - float(lease["used"]) > _FOREIGN_LEASE_S
    started = _started(int(lease["pid"]))
    return started is None or started != float(lease["started"])


def _host() -> str:
    """What a process id belongs to. Containers may share a host name, and machines the number of a namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _started(pid: int) -> float | None:
    """What tells a process from others that had its number; None if there is no such process.

    Clock ticks since boot: a time of day would be another one after the clock was set.
    """
    try:
        # The name of the program, in brackets, may hold blanks and brackets itself.
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[_START_TICKS])
    except (FileNotFoundError, ProcessLookupError):  # gone, or going while it was read
        if Path("/proc/self/stat").exists():
            return None
    try:
        return float(psutil.Process(pid).create_time())  # not Linux
    except psutil.Error:
        return None


@atexit.register
def _delete_all() -> None:
    with _lock:
        paths = [(entry.store, entry.path) for entry in _entries] + _given_up
        _entries.clear()
        _given_up.clear()
    for store, path in paths:
        _delete(store, path)


def _forget_all_after_fork() -> None:
    # A child neither owns its parent's datasets nor can it wait for a lock that was held when it was forked.
    global _lock
    _lock = threading.RLock()
    _entries.clear()
    _given_up.clear()


os.register_at_fork(after_in_child=_forget_all_after_fork)
