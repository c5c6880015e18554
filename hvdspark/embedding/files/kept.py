"""Copies of the files of rows that ranks have written on this host, for the ranks that come after them.

    <scratch>/hvdspark-rows-<run>/<collection>/<save>/...    as in the store, below the directory of tables

The store has the truth. A copy has the size and the checksum that the manifest says or is not used, and no copy is
needed: what cannot be kept, or is not found, is read from the store. Copies are of the newest checkpoint and the one
that is being written; they go at the end of training, with the executor whose directory they lie in, or when another
run finds them after half a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hvdspark.embedding.files.checked import checked_chunks
from hvdspark.embedding.files.tensor_file import Writer
from hvdspark.store import Store

_PREFIX = "hvdspark-rows-"
_FORGOTTEN_S = 12 * 3600.0
# Spark spills to the same disk: copies take no more than half of what is free.
_SHARE_OF_FREE = 0.5


class KeptFiles:
    """Those of one run, as one rank sees them. Ranks of a host share them.

    Args:
        scratch: a directory that later ranks of this host find again; None: nothing is kept.
        run: names the run among those of the host.
        place: directory in the store of the tables' files; others are not kept.

    Attributes:
        found, fetched: bytes that were read here, and from the store.
    """

    def __init__(self, scratch: str | None = None, run: str = "", place: str = "") -> None:
        self._folder = None if scratch is None else Path(scratch, f"{_PREFIX}{run}")
        self._place = f"{place}/"
        self._saves: list[str] = []
        self._next: list[str] = []
        self._all: set[str] = set()
        self.found = self.fetched = 0
        if self._folder is not None:
            _remove_forgotten(self._folder)
            self._all = {save.name for save in self._folder.glob("*/*")}

    def has(self, path: str, size: int) -> bool:
        """Whether there seems to be a copy of a file of the store: `read` looks at what is in it."""
        copy = self._copy_of(path)
        with contextlib.suppress(OSError):
            return copy is not None and copy.stat().st_size == size
        return False

    def read(self, store: Store, path: str, size: int, sha256: str, what: str) -> bytearray:
        """The content of a file of the store, from its copy where that is what the manifest says.

        Args:
            size, sha256, what: see `checked_chunks`.

        Raises:
            CheckpointError: the file is missing in the store, or damaged.
        """
        copy = self._copy_of(path)
        if copy is not None and self.has(path, size):
            found = _as_written(copy, size, sha256)
            if found is not None:
                self.found += len(found)
                return found
            with contextlib.suppress(OSError):
                copy.unlink()
        data = _joined(checked_chunks(store, path, size, sha256, what))
        self.fetched += len(data)
        return data

    @contextlib.contextmanager
    def beside(self, path: str, file: Writer, size: int) -> Iterator[Writer]:
        """What writes a file of the store, and its copy. An error of the copy ends the copy alone.

        Args:
            size: bytes, about.
        """
        copy = self._copy_of(path)
        if copy is None or not _has_room(copy, size):
            yield file
            return
        assert self._folder is not None
        both = _Both(file, copy, self._folder)
        try:
            yield both
        except BaseException:
            both.give_up()
            raise
        both.finish()

    def begin(self, save: str, *, whole: bool) -> None:
        """Files of a save come.

        Args:
            whole: they have all rows; else what has changed since the save before.
        """
        self._next = [save] if whole else [*self._saves, save]
        self._all.add(save)

    def settle(self, written: bool) -> None:
        """All ranks have written the save that was begun last, or some could not: what it makes useless goes."""
        if self._folder is None or not self._next:
            return
        if written:
            self._saves = self._next
        # Before the first save is written, those of the generation before are of the newest checkpoint.
        useless = self._all - set(self._saves) if written else {self._next[-1]}
        for save in useless:
            for place in self._folder.glob(f"*/{save}"):
                shutil.rmtree(place, ignore_errors=True)
        self._all -= useless
        with contextlib.suppress(OSError):  # there may be none, and nothing is forgotten that is in use
            os.utime(self._folder)

    def clear(self) -> None:
        """No rank comes after this one."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _copy_of(self, path: str) -> Path | None:
        if self._folder is None or not path.startswith(self._place):
            return None
        return self._folder / path.removeprefix(self._place)


KEEPS_NOTHING = KeptFiles()


class _Both:
    """Writes a file, and a copy as long as that can be written."""

    def __init__(self, file: Writer, copy: Path, folder: Path) -> None:
        self._file, self._copy = file, copy
        self._part = copy.with_name(f"{copy.name}.part-{os.getpid()}")
        self._open: Any = None
        with contextlib.suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            copy.parent.mkdir(parents=True, exist_ok=True)
            self._open = open(self._part, "wb")  # noqa: SIM115, closed by finish and give_up

    def write(self, data: Any, /) -> int:
        if self._open is not None:
            try:
                self._open.write(data)
            except OSError:
                self.give_up()
        return self._file.write(data)

    def finish(self) -> None:
        if self._open is not None:
            try:
                self._open.close()
                os.replace(self._part, self._copy)
            except OSError:
                self.give_up()

    def give_up(self) -> None:
        with contextlib.suppress(OSError):
            if self._open is not None:
                self._open.close()
        self._open = None
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


def _has_room(copy: Path, size: int) -> bool:
    there = next((folder for folder in copy.parents if folder.exists()), copy.parent)
    with contextlib.suppress(OSError):
        return size <= _SHARE_OF_FREE * shutil.disk_usage(there).free
    return False


def _remove_forgotten(own: Path) -> None:
    for folder in own.parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder != own and time.time() - folder.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(folder, ignore_errors=True)


def _as_written(copy: Path, size: int, sha256: str) -> bytearray | None:
    """The content of a copy; None where it is another, or cannot be read: nobody waits for a disk that fails while the
    store has the same."""
    data = bytearray(size)
    with contextlib.suppress(OSError), open(copy, "rb") as file:
        if file.readinto(data) == size and not file.read(1) and hashlib.sha256(data).hexdigest() == sha256:
            return data
    return None


def _joined(chunks: Iterable[bytes]) -> bytearray:
    data = bytearray()  # what the file has, not what is said of it
    for chunk in chunks:
        data += chunk
    return data
