"""Where datasets, runs and models live: one URI, three spellings, and the rules for writing.

How it is spelled for whom is in `spellings`. Paths handed to a `Store` are relative to it, with forward slashes.

Nothing half-written is ever visible under its final name: single files are written under a temporary name and renamed
(object stores publish a file only when it is complete), directories count as written once `commit` has put
`manifest.json` into them, last.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from hvdspark.errors import StoreError
from hvdspark.store.local_file import appearing, temporary_name
from hvdspark.store.patience import patient, patiently
from hvdspark.store.sealed import sealed, unsealed
from hvdspark.store.spellings import RENAMING, canonical, checked, fsspec_form, joined

__all__ = ["Store"]

MANIFEST = "manifest.json"

PIECE_BYTES = 1 << 22
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs"}


class Store:
    """A directory that the driver and all ranks can reach. Holds no connection, so it can be pickled.

    Args:
        uri: a plain path or a URI of any scheme in the table of `spellings` (or another one that fsspec knows).
        where: what the user gave it as; errors say it.

    Raises:
        StoreError: the URI is empty, malformed, of an unknown scheme, or carries credentials.
    """

    def __init__(self, uri: str, where: str = "store_uri") -> None:
        self.uri, self._where = canonical(uri, where), where
        self._fsspec_uri = fsspec_form(self.uri)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and self.uri == other.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    def spark_uri(self, path: str = "") -> str:
        """What `spark.read` and `df.write` take. Not percent-encoded: Hadoop takes blanks as they are."""
        return joined(self.uri, path)

    def petastorm_uri(self, path: str = "") -> str:
        """What Petastorm takes: always with a scheme, and one that fsspec knows."""
        return joined(self._fsspec_uri, path)

    def local_path(self, path: str = "") -> Path | None:
        """The path for plain file access, or None when the store is not a mounted file system.

        Raises:
            StoreError: a symbolic link in the store leads out of it.
        """
        if not self._fsspec_uri.startswith("file://"):
            return None
        local = self._unfollowed(path)
        if path:
            self._check_inside(local)
        return local

    def _unfollowed(self, path: str) -> Path:
        return Path(joined(self._fsspec_uri.removeprefix("file://"), path))

    def _check_inside(self, local: Path) -> None:
        """Whoever sends a store, packed, may have put links into it."""
        root = os.path.realpath(self._unfollowed(""))
        if os.path.commonpath([root, os.path.realpath(local)]) != root:
            raise StoreError(
                "a symbolic link leads out of the store",
                value=str(local),
                where=self._where,
                hint="let the URI name the place itself, mount it there, or copy the files (cp -L)",
            )

    def filesystem(self) -> Any:
        """The fsspec filesystem of the store. StoreError if its package is not installed."""
        import fsspec

        scheme = self._fsspec_uri.split(":", 1)[0]
        try:
            return fsspec.core.url_to_fs(self._fsspec_uri)[0]
        except ImportError as error:
            package = _PACKAGES.get(scheme, scheme)
            raise StoreError(
                "no filesystem is installed for this store",
                value=self.uri,
                where=self._where,
                hint=f"pip install {package} on the driver and on every executor ({error})",
            ) from error

    def path(self, path: str = "") -> str:
        """The key of `path` in `filesystem()`."""
        local = self.local_path(path)
        return str(local) if local is not None else self.filesystem()._strip_protocol(joined(self._fsspec_uri, path))

    @patient
    def exists(self, path: str = "") -> bool:
        """Whether there is a file or directory of that name."""
        with self._named("look for", path):
            local = self.local_path(path)
            return local.exists() if local is not None else self.filesystem().exists(self.path(path))

    @patient
    def list(self, path: str = "") -> list[str]:
        """Names (not paths) of what is directly in a directory, sorted; empty if it is missing."""
        with self._named("list", path):
            local = self.local_path(path)
            if local is not None:
                return sorted(os.listdir(local)) if local.is_dir() else []
            filesystem, key = self.filesystem(), self.path(path)
            filesystem.invalidate_cache(key)
            try:
                entries = filesystem.ls(key, detail=False)
            except FileNotFoundError:
                return []
            names = {entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry.rstrip("/") != key.rstrip("/")}
            return sorted(names)

    @patient
    def delete(self, path: str) -> None:
        """Remove a file or a directory with all it holds. Nothing happens if it is missing."""
        with self._named("delete", path):
            if self.local_path() is None:
                with contextlib.suppress(FileNotFoundError):
                    self.filesystem().rm(self.path(path), recursive=True)
                return
            local = self._unfollowed(path)
            self._check_inside(local.parent if path else local)  # a link itself may go
            if local.is_dir() and not local.is_symlink():
                shutil.rmtree(local, onerror=_ignore_missing)
            else:
                local.unlink(missing_ok=True)

    @patient
    def make_directory(self, path: str = "") -> None:
        """Create a directory and its parents. On local disks all that are new belong to this user alone (0700)."""
        with self._named("create", path):
            local = self.local_path(path)
            if local is None:
                self.filesystem().makedirs(self.path(path), exist_ok=True)
                return
            missing = [folder for folder in (local, *local.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(mode=0o700, exist_ok=True)

    @patient
    def open_read(self, path: str) -> BinaryIO:
        """A seekable binary file, open for reading. The caller closes it."""
        with self._named("read", path):
            local = self.local_path(path)
            opened = open(local, "rb") if local is not None else self.filesystem().open(self.path(path), "rb")  # noqa: SIM115
            return cast(BinaryIO, opened)

    def pieces(self, path: str, most: int = PIECE_BYTES) -> Iterator[bytes]:
        """The content of a file, so much at a time. One that fails for a while is opened again, at the same place."""
        at = 0
        with contextlib.ExitStack() as opened:
            files: list[BinaryIO] = []

            def piece() -> bytes:
                with self._named("read", path):
                    try:
                        if not files:
                            files.append(opened.enter_context(self.open_read(path)))
                            files[0].seek(at)
                        return files[0].read(most)
                    except OSError:
                        files.clear()
                        opened.close()
                        raise

            while data := patiently(piece):
                at += len(data)
                yield data

    @patient
    def read_bytes(self, path: str) -> bytes:
        """All of a file. StoreError if it cannot be read."""
        with self.open_read(path) as file, self._named("read", path):
            return file.read()

    def read_text(self, path: str) -> str:
        """All of a file, in UTF-8. StoreError if it cannot be read."""
        return self.read_bytes(path).decode("utf-8")

    def read_json(self, path: str) -> Any:
        """What a file of JSON says. StoreError if it cannot be read, or is none."""
        return self._parsed(path, "a file of JSON", lambda said: said)

    @patient
    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file; readers see the old content or the new, never a part. Parents are created."""
        if self.local_path() is not None:
            with self.open_write(path) as file:
                file.write(data)
            return
        with self._publishing(path) as target:
            self.filesystem().pipe_file(target, data)

    @contextlib.contextmanager
    def open_write(self, path: str, *, cached: bool = True) -> Iterator[BinaryIO]:
        """A binary file to write piece by piece, which appears under its name when the block ends without an error.

        Readers see the old content or the new, never a part. Parents are created. Where the store is not a local file
        system the pieces are collected in the temporary directory first. A local one that fails for a while fails here:
        who can write the file once more calls this `patiently`.

        Args:
            cached: of a local file, see `local_file.appearing`.
        """
        local = self.local_path(path)
        if local is None:
            with tempfile.NamedTemporaryFile(prefix="hvdspark-") as spool:
                yield cast(BinaryIO, spool)
                with self._named("write", path):
                    spool.flush()
                self._put(spool.name, path)
            return
        self.make_directory(checked(path).rpartition("/")[0])
        with self._named("write", path), appearing(local, cached=cached) as file:
            yield file

    @patient
    def _put(self, file: str, path: str) -> None:
        with self._publishing(path) as target:
            self.filesystem().put_file(file, target)

    def copy_from(self, source: Store, source_path: str, path: str) -> None:
        """Write a file with the content of one of another store (or of this one), in memory that does not grow."""
        with self.open_write(path) as copy:
            for piece in source.pieces(source_path):
                copy.write(piece)

    def write_text(self, path: str, text: str) -> None:
        """Write a file, in UTF-8, in one step; see `write_bytes`."""
        self.write_bytes(path, text.encode("utf-8"))

    def check_writable(self) -> None:
        """Write, read and delete a small file: in the store's directory, or in the nearest above it that there is.

        Nothing is left behind, and no directory is made, which another fit might find and lose again.

        Raises:
            StoreError: that failed.
        """
        name, root = f".hvdspark-{uuid.uuid4().hex}", self.local_path()
        try:
            there = root and next(folder for folder in (root, *root.parents) if folder.exists())
            place = self if there == root else Store(str(there), self._where)
            place.write_bytes(name, b"hvdspark")
            if place.read_bytes(name) != b"hvdspark":
                raise StoreError("the store does not give back what was written to it", value=self.uri)
            place.delete(name)
        except Exception as error:
            if isinstance(error, StoreError) and not isinstance(error.__cause__, OSError):
                raise
            # `_named` has wrapped it already: the user needs its cause, and one hint.
            cause = error.__cause__ if isinstance(error, StoreError) and error.__cause__ is not None else error
            raise StoreError(
                f"the store cannot be written ({_cause(cause)})",
                value=self.uri,
                where=self._where,
                hint="give a directory that this user may write, on a file system that all executors share",
            ) from cause

    def commit(self, path: str, manifest: dict[str, Any]) -> None:
        """Declare the directory `path` complete by writing its manifest, last."""
        self.write_text(f"{checked(path)}/{MANIFEST}", sealed(manifest))

    def committed(self, path: str) -> dict[str, Any] | None:
        """The manifest of a complete directory; None if it is missing or was never committed.

        Raises:
            StoreError: it cannot be read or parsed, or is not what was written.
        """
        manifest = f"{checked(path)}/{MANIFEST}"
        return cast("dict[str, Any]", self._parsed(manifest, "a manifest", unsealed)) if self.exists(manifest) else None

    def _parsed(self, path: str, what: str, understood: Callable[[Any], Any]) -> Any:
        try:
            return understood(json.loads(self.read_text(path)))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{what} cannot be parsed ({_cause(error)})", value=joined(self.uri, path)) from error

    @contextlib.contextmanager
    def _publishing(self, path: str) -> Iterator[str]:
        """The key to write a whole file to, on a file system that is not local; what is there then becomes `path`."""
        parent, _, name = checked(path).rpartition("/")
        self.make_directory(parent)
        with self._named("write", path):
            if self._fsspec_uri.split(":", 1)[0] in RENAMING:
                temporary = self.path(f"{parent}/{temporary_name(name)}".lstrip("/"))
                yield temporary
                self.filesystem().mv(temporary, self.path(path))
            else:
                yield self.path(path)

    @contextlib.contextmanager
    def _named(self, verb: str, path: str) -> Iterator[None]:
        """Turn an OSError into a StoreError that names the URI."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise StoreError(
                f"{'the store is full: ' if full else ''}cannot {verb} a path of the store ({_cause(error)})",
                value=joined(self.uri, path),
                where=self._where,
                hint="free space there, or raise the quota; nothing half-written was left"
                if full
                else "check that the path exists and that this user may use it, on this host",
            ) from error


def _cause(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {reason}"


def _ignore_missing(function: Any, path: str, info: Any) -> None:
    # Two owners may collect the same leftovers at the same time.
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
