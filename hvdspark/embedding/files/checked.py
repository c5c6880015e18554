"""Files that are compared with their checksum while they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import PIECE_BYTES, Store


def checked_chunks(store: Store, path: str, size: int, sha256: str, what: str) -> Iterator[bytes]:
    """The content of a file, piece by piece. To be used when the last piece has come without an error.

    Args:
        size, sha256: what the file has by its manifest.
        what: the file is, for the error: "a file of ...".

    Raises:
        CheckpointError: the file is missing, or is not what was written; never more than `size` bytes come.
    """
    digest, found = hashlib.sha256(), 0
    try:
        for piece in store.pieces(path, min(PIECE_BYTES, size + 1)):
            found += len(piece)
            if found > size:
                break
            digest.update(piece)
            yield piece
    except StoreError as error:
        raise CheckpointError(
            f"{what} cannot be read",
            value=str(error),
            where=store.spark_uri(path),
            hint="the directory is incomplete: use another checkpoint or model",
        ) from error
    if (found, digest.hexdigest()) != (size, sha256):
        raise damaged(what, store.spark_uri(path), f"{size} bytes with SHA-256 {sha256}")


def damaged(what: str, where: str, expected: str) -> CheckpointError:
    """The error for a file that is not what its manifest says."""
    return CheckpointError(
        f"{what} is damaged: by the manifest it has {expected}", where=where, hint="use another checkpoint or model"
    )
