"""A file of a local file system that appears when it is whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def appearing(path: Path, *, cached: bool) -> Iterator[BinaryIO]:
    """A file to write, of this user alone, that is on the disk and under its name when the block ends without an error.

    Args:
        cached: False: nobody is to read it soon, and it should not take the system's cache from what is read. Its pages
            go when they are on the disk, so that a large file needs few of them. Taking a new one costs ten times as
            much as writing to it where a virtual machine gives back what is free.

    Raises:
        OSError: it cannot be written. Nothing of it is left.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with open(temporary, "xb", opener=_of_this_user) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not cached:
                with contextlib.suppress(OSError, AttributeError):  # not everywhere, and nothing depends on it
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """What a file is called until it is whole."""
    return f".{name}.{uuid.uuid4().hex}.tmp"


def _of_this_user(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
