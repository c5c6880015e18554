"""The datasets that this process has written, who still needs them, and what crashed processes left behind.

A dataset lives as long as somebody holds it: a fit that reads it, or the DataFrame that it was made from. When the last
holder goes, or the interpreter exits, its directory is deleted. A process that is killed cannot do that; so each
dataset has a lease (host, process id, start of that process) and whoever writes the next dataset into the same store
deletes those whose process is gone. Of another host that cannot be known, and the lease runs out after 14 days without
use; what is in use is renewed every hour (see `leases`). A run that is not finished has the same lease.

A run that somebody may go on with later, in another process, keeps its dataset: it is deleted by nobody as long as the
record of that run is there.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from hvdspark.data.dataset import leases
from hvdspark.errors import StoreError
from hvdspark.specs import DatasetSpec
from hvdspark.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

DATASETS = "datasets"
# What a run needs no more that has its model. The mark of its last generation goes first: ranks that the driver has
# lost then write nothing more.
OF_TRAINING = (leases.MARK, "checkpoints", "initial")
_MODEL = "model/manifest.json"
_KEPT_FOR = "kept_for"


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
        if usable and store.exists(f"{entry.path}/{leases.FILE}"):
            leases.renew(store, entry.path)
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
    _release(entry.store, entry.path)


def keep_for(store: Store, path: str, run_id: str) -> None:
    """Let the dataset live as long as the record of a run is there, or until `no_longer_for`; whoever else goes."""
    store.write_text(f"{path}/{_KEPT_FOR}/{run_id}", "")


def no_longer_for(store: Store, path: str, run_id: str) -> None:
    """A run needs the dataset no more: delete it, unless somebody else does."""
    store.delete(f"{path}/{_KEPT_FOR}/{run_id}")
    with _lock:
        if any((entry.store, entry.path) == (store, path) for entry in _entries):
            return  # deleted with its last holder
    with contextlib.suppress(*leases.NONE_OF_OURS):
        lease = leases.read(store, path)
        if leases.is_abandoned(lease) or leases.is_own(lease):
            _delete_unless_kept(store, path)


def _release(store: Store, path: str) -> None:
    try:
        _delete_unless_kept(store, path)
    except StoreError as error:
        logger.warning("%s could not be deleted: %s", path, error)


def _delete_unless_kept(store: Store, path: str) -> bool:
    """Whether it was to be deleted: a dataset that a run needs is not, nor a run that can be gone on with."""
    folder, _, name = path.partition("/")
    needed_by = [name] if folder == leases.RUNS else store.list(f"{path}/{_KEPT_FOR}")
    if any(leases.has_record(store, run_id) for run_id in needed_by):
        return False
    _delete(store, path)
    return True


def collect_leftovers(store: Store) -> None:
    """Delete the datasets and unfinished runs of processes that are gone, and what this process has given up."""
    with _lock:
        given_up, _given_up[:] = list(_given_up), []
    for owner, path in given_up:
        _delete(owner, path)
    datasets = [f"{DATASETS}/{name}" for name in store.list(DATASETS)]
    runs = [f"{leases.RUNS}/{name.removesuffix('.json')}" for name in store.list(leases.OF_RUNS)]
    for path in [*datasets, *runs]:
        with contextlib.suppress(*leases.NONE_OF_OURS):
            if not leases.is_abandoned(leases.read(store, path)):
                continue
            if store.exists(f"{path}/{_MODEL}"):
                logger.info("%s is a model although its fit did not return; delete it if it is not wanted", path)
                if not leases.has_record(store, path.partition("/")[2]):  # else a fit of its name finishes it
                    for of_training in OF_TRAINING:
                        store.delete(f"{path}/{of_training}")
                store.delete(leases.file_of(path))
            elif _delete_unless_kept(store, path):
                logger.info("deleted %s, left behind by a process that is gone", store.spark_uri(path))


def _write(entry: Entry, write: Callable[[str], DatasetSpec]) -> None:
    try:
        leases.renew(entry.store, entry.path)
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
        store.delete(leases.file_of(path))
    except StoreError as error:
        logger.warning("%s could not be deleted: %s", path, error)


@contextlib.contextmanager
def leased(store: Store, path: str) -> Iterator[None]:
    """While the context lasts, the run `path` is made by this process: should it be killed, others may delete it.

    That holds after an error, too, until the run is discarded.
    """
    leases.renew(store, path)
    with leases.renewed(store, path):
        yield
    try:
        store.delete(leases.file_of(path))
    except StoreError as error:  # whoever finds the lease finds the model, too
        logger.warning("a lease could not be deleted: %s", error)


def discard(store: Store, path: str) -> None:
    """Delete a dataset or run that failed, and once more with the next dataset."""
    _delete(store, path)
    with _lock:
        _given_up.append((store, path))


@atexit.register
def _delete_all() -> None:
    with _lock:
        paths = [(entry.store, entry.path) for entry in _entries] + _given_up
        _entries.clear()
        _given_up.clear()
    for store, path in paths:
        _release(store, path)


def _forget_all_after_fork() -> None:
    # A child neither owns its parent's datasets nor can it wait for a lock that was held when it was forked.
    global _lock
    _lock = threading.RLock()
    _entries.clear()
    _given_up.clear()


os.register_at_fork(after_in_child=_forget_all_after_fork)
