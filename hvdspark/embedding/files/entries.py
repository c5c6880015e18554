"""What a manifest says about files of embedding rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.plain import built
from hvdspark.store.spellings import checked

FILE_OF_ROWS = "a file of embedding rows"  # in errors


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says about the rows in some buckets of one exchange group.

    Attributes:
        path: relative to the directory; None: there are no rows and no file.
        group: number of the exchange group.
        first, stop: buckets [first, stop).
        rows: rows of each table of the group, by name.
        state: whether optimizer state, last steps and waiting ids are there, too.
        sha256, bytes: of the file; "" and 0 without one.
        delta: 0: these are all rows. Else those that have changed since the file of number delta - 1.
    """

    path: str | None
    group: int
    first: int
    stop: int
    rows: dict[str, int]
    state: bool
    sha256: str = ""
    bytes: int = 0
    delta: int = 0

    def plain(self) -> dict[str, Any]:
        """JSON-able. Whole rows are told as versions tell them that know no others."""
        return {name: value for name, value in asdict(self).items() if name != "delta" or value}


def parse_entries(entries: Iterable[Mapping[str, Any]], where: str) -> list[FileEntry]:
    """Raises CheckpointError where an entry is not one."""
    try:
        files = [built(FileEntry, entry) for entry in entries]
        for file in files:
            if not 0 <= file.first < file.stop <= BUCKETS:
                raise ValueError(f"buckets [{file.first}, {file.stop})")
            if min(file.group, file.bytes, file.delta, *file.rows.values()) < 0:
                raise ValueError("a number below 0")
            if file.path is not None:
                checked(file.path)
    except (TypeError, ValueError, StoreError) as error:
        raise CheckpointError(
            "the list of table files in the manifest is damaged",
            value=f"{type(error).__name__}: {error}",
            where=where,
            hint="the manifest was not written by hvdspark, or was changed",
        ) from error
    return files


def file_of_buckets(files: Sequence[FileEntry], table: str, first: int, stop: int, where: str) -> NDArray[Any]:
    """For each of the buckets [first, stop) the number of the entry that has the rows of a table. int32 [stop - first]

    Raises:
        CheckpointError: for some bucket there is none, or more than one.
    """
    numbers = np.full(BUCKETS, -1, dtype=np.int32)
    times = np.zeros(BUCKETS, dtype=np.int32)
    for number, file in enumerate(files):
        if table in file.rows:
            numbers[file.first : file.stop] = number
            times[file.first : file.stop] += 1
    wrong = first + np.flatnonzero(times[first:stop] != 1)
    if len(wrong):
        raise CheckpointError(
            f"bucket {wrong[0]} of table {table!r} is in {times[wrong[0]]} files of the manifest instead of one",
            where=where,
            hint="entries of some rank are missing, or from two saves",
        )
    return numbers[first:stop]
