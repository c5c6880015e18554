"""A directory in place of another one: what is written anew takes the place of what was there, at once where it can be.

On a local file system of Linux the two names are exchanged in one step (renameat2), so whoever looks finds the old
directory or the new one, whenever the writer ends. Elsewhere, and on HDFS, the old one is renamed first: for that
moment there is none under the name, and both lie beside it. Object stores rename nothing: the old objects are deleted
and the new ones copied, which a reader may see half done; the new directory stays beside it until the copy is
complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from hvdspark.errors import StoreError
from hvdspark.store import Store
from hvdspark.store.spellings import RENAMING

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replaced(store: Store, where: str = "path") -> Iterator[Store]:
    """Where to write what takes the place of all that is in a store, when the block ends without an error.

    With an error, what was there stays as it is, and nothing of what was written.

    Raises:
        StoreError: the store is no directory in another one, or cannot be replaced.
    """
    parent, _, name = store.uri.rpartition("/")
    if not name or parent.endswith(("/", ":")):
        raise StoreError(
            "this is no directory that could be replaced", value=store.uri, where=where, hint="give one in it"
        )
    around = Store(parent, where)
    new = f".{name}.{uuid.uuid4().hex[:12]}.new"
    try:
        yield Store(f"{parent}/{new}", where)
    except BaseException:
        with contextlib.suppress(StoreError):
            around.delete(new)
        raise
    put_in_place(around, new, name)


def put_in_place(store: Store, new: str, name: str) -> None:
    """Let the directory `new` of a store be `name`, and delete what was `name`.

    Raises:
        StoreError: that failed. Both are there, under these names or one that the error says.
    """
    here, there = store.local_path(new), store.local_path(name)
    if here is not None and there is not None:
        if not (os.path.lexists(there) and exchange(here, there)):
            _rename_two(store, new, name)
            return
        _settle(there.parent)
        store.delete(new)  # what was there
    elif any(store.uri.startswith(f"{scheme}:") for scheme in RENAMING):
        _rename_two(store, new, name)
    else:
        _copy_over(store, new, name)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two directories in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library that is older than the call
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _rename_two(store: Store, new: str, name: str) -> None:
    old = f"{new.removesuffix('.new')}.old"
    with _named(store, new, name):
        if store.exists(name):
            _rename(store, name, old)
        try:
            _rename(store, new, name)
        except BaseException:
            if store.exists(old):
                _rename(store, old, name)
            raise
    store.delete(old)


def _rename(store: Store, one: str, other: str) -> None:
    here, there = store.local_path(one), store.local_path(other)
    if here is not None and there is not None:
        os.rename(here, there)
    else:
        store.filesystem().mv(store.path(one), store.path(other), recursive=True)


def _copy_over(store: Store, new: str, name: str) -> None:
    with _named(store, new, name):
        store.delete(name)
        store.filesystem().copy(store.path(new), store.path(name), recursive=True)
    store.delete(new)


@contextlib.contextmanager
def _named(store: Store, new: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"what was saved could not take the place of what was there ({error})",
            value=store.spark_uri(name),
            hint=f"it is complete at {store.spark_uri(new)}: move it, or save again",
        ) from error


def _settle(folder: Path) -> None:
    """Let names in a folder survive the loss of power."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
