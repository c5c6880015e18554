"""Files of tables as local paths: those of a local store in place, all others copied once for each host.

    <temporary directory>/hvdspark-<user>/<fingerprint>.lock     held (shared) by every process that uses the copy
                                          <fingerprint>/         the copy: each file when it is first asked for

All processes of a user on a host share the copies. Locks are `flock`: the kernel gives them back when a process ends,
however it does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from hvdspark.embedding.files.checked import damaged
from hvdspark.embedding.files.entries import FILE_OF_ROWS, FileEntry
from hvdspark.embedding.files.shards import verified_chunks
from hvdspark.embedding.plan.sharding import format_bytes
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store

# Others copy one file, or delete one copy, meanwhile: minutes at most on a host that works.
_LOCK_TIMEOUT_S = 900.0
_LOCK_POLL_S = 0.05
_ROOM = "TMPDIR names the directory for copies; it needs room for the tables that are looked up"


def locate_files(store: Store, directory: str, fingerprint: str) -> Callable[[FileEntry], Path]:
    """What gives the local path of a file when it is first needed.

    Args:
        fingerprint: tells the files of this directory from all others that will ever be there; names the host's copy.

    The function raises CheckpointError where a file is missing or damaged; of a file in a local store it looks at the
    size alone.
    """
    if store.local_path() is None:
        return HostCopy(store, directory, fingerprint).path

    def in_place(file: FileEntry) -> Path:
        path = store.local_path(f"{directory}/{file.path}")
        assert path is not None
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CheckpointError(
                "a file of embedding rows cannot be read",
                value=f"{type(error).__name__}: {error.strerror}",
                where=str(path),
                hint="a fitted model lives in the store until it is deleted there; model.save(path) makes a copy",
            ) from error
        if size != file.bytes:
            raise damaged(FILE_OF_ROWS, str(path), f"{file.bytes} bytes, not {size}")
        return path

    return in_place


class HostCopy:
    """This host's copy of a directory of tables. Making it removes the copies that no process uses any more, and what
    killed processes left.

    Args:
        fingerprint: of the content.

    Raises:
        StoreError: the place for copies belongs to another user, or is locked for 15 minutes.
    """

    def __init__(self, store: Store, directory: str, fingerprint: str) -> None:
        self._store, self._directory = store, directory
        with self._named():
            base = _private_directory(Path(tempfile.gettempdir()) / f"hvdspark-{os.getuid()}")
            name = hashlib.blake2b(fingerprint.encode(), digest_size=16).hexdigest()
            self._folder = base / name
            lock = _lock(base / f"{name}.lock", fcntl.LOCK_SH)
            self._release = weakref.finalize(self, os.close, lock)
            _remove_unused(base)
            _remove_parts(base)

    def path(self, file: FileEntry) -> Path:
        """Where the copy of a file is; it is made, and its checksum compared, by the first process that asks.

        Raises:
            CheckpointError: the file is missing or damaged in the store.
            StoreError: it cannot be written here, or another process has been at it for 15 minutes.
        """
        name = f"{file.group}-{file.first}-{file.stop}.safetensors"
        target = self._folder / name
        if target.exists():
            return target
        with self._named():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with _locked(self._folder / f"{name}.lock"):
                if not target.exists():
                    self._copy(file, target)
        return target

    def _copy(self, file: FileEntry, target: Path) -> None:
        free = shutil.disk_usage(self._folder).free
        if file.bytes > free:
            raise StoreError(
                f"there is no room on this host for a file of embedding rows: it has {format_bytes(file.bytes)}, "
                f"{format_bytes(free)} are free",
                value=str(self._folder),
                where=self._store.spark_uri(f"{self._directory}/{file.path}"),
                hint=_ROOM,
            )
        part = target.with_name(f"{target.name}.part")
        try:
            with open(part, "wb") as copy:
                for chunk in verified_chunks(self._store, self._directory, file):
                    copy.write(chunk)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Let the copy be removed; mapped files stay readable."""
        self._release()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(
                f"tables cannot be copied to this host ({type(error).__name__}: {error.strerror})",
                value=error.filename or tempfile.gettempdir(),
                where=self._store.spark_uri(self._directory),
                hint=_ROOM,
            ) from error


def _private_directory(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise StoreError(
            "the directory for copies of tables is not private to this user",
            value=str(path),
            hint="remove it, or let TMPDIR name another place",
        )
    return path


def _remove_unused(base: Path) -> None:
    for path in base.glob("*.lock"):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)


def _remove_parts(base: Path) -> None:
    """What processes left in copies that are in use when they were killed."""
    for part in base.glob("*/*.part"):
        with contextlib.suppress(FileNotFoundError), open(part.with_suffix(".lock"), "rb+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # somebody is at it
            part.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, kind: int) -> int:
    """Lock a file, which is made where it is missing, until the returned descriptor is closed."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if _is_at(descriptor, path):  # else whoever had it has removed it meanwhile
                return descriptor
        except BlockingIOError:
            time.sleep(_LOCK_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise StoreError(
                f"another process has held a lock for {_LOCK_TIMEOUT_S:.0f} s",
                value=str(path),
                hint="end the process that hangs, or remove the directory",
            )


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
