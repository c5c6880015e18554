"""Who uses a dataset, or makes a run, at the moment: a small file of its process, renewed while that lives.

Of a process of this host it can be known whether it is still there. Of another host it cannot, and a lease runs out
after 14 days without a word.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import psutil

from hvdspark.errors import StoreError
from hvdspark.store import Store

logger = logging.getLogger(__name__)

FILE = "lease.json"
RUNS = "runs"
OF_RUNS = "leases"
MARK = "generation.json"  # in a run's directory: which of its generations may write
# What reading and understanding a file that is no lease raises.
NONE_OF_OURS = (StoreError, ValueError, KeyError, TypeError, OverflowError, RecursionError)
_RECORD = "run.json"
_FOREIGN_S = 14 * 24 * 3600.0
_START_TICKS = 19  # of what follows the name in /proc/<pid>/stat: field 22 of proc(5)
_RENEWAL_INTERVAL_S = 3600.0


@contextlib.contextmanager
def renewed(store: Store, path: str) -> Iterator[None]:
    """Keep the lease of `path` from running out while the context lasts."""
    over = threading.Event()

    def keep() -> None:
        while not over.wait(_RENEWAL_INTERVAL_S):
            try:
                renew(store, path)
            except StoreError as error:
                logger.warning("a lease could not be renewed: %s", error)

    thread = threading.Thread(target=keep, name="hvdspark-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def renew(store: Store, path: str, **more: Any) -> None:
    """Write the lease of `path`, a dataset or a run, as this process's."""
    store.write_text(file_of(path), json.dumps({**own(), **more}))


def read(store: Store, path: str) -> dict[str, Any]:
    """The lease of `path`.

    Raises:
        StoreError, ValueError: there is none, or it is damaged.
    """
    return cast("dict[str, Any]", json.loads(store.read_text(file_of(path))))


def own() -> dict[str, Any]:
    """What this process writes into its leases."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid()), "used": time.time()}


def file_of(path: str) -> str:
    """Where the lease of `path` is.

    Those of runs are in a folder of their own: a store may hold thousands of models, and whoever writes into it should
    not have to look at each.
    """
    parent, _, name = path.partition("/")
    return f"{OF_RUNS}/{name}.json" if parent == RUNS else f"{path}/{FILE}"


def is_abandoned(lease: dict[str, Any]) -> bool:
    """Whether the process of a lease is gone, as far as is known here. KeyError or ValueError where it is damaged."""
    if is_foreign(lease):
        return time.time() - float(lease["used"]) > _FOREIGN_S
    started = _started(int(lease["pid"]))
    return started is None or started != float(lease["started"])


def is_own(lease: dict[str, Any]) -> bool:
    """Whether it is this process's."""
    mine = own()
    return all(lease[name] == mine[name] for name in ("host", "pid", "started"))


def record_of(run_id: str) -> str:
    """Where it is recorded what a run is that can be gone on with."""
    return f"{RUNS}/{run_id}/{_RECORD}"


def has_record(store: Store, run_id: str) -> bool:
    """Whether a run of this name can be gone on with."""
    return store.exists(record_of(run_id))


def is_foreign(lease: dict[str, Any]) -> bool:
    """Whether it is of another host, of whose processes nothing is known here."""
    return bool(lease["host"] != _host())


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
