"""Sharded tables in the store: one safetensors file for each group of buckets; see docs/checkpoint-format.md.

    <directory>/<exchange group>/buckets-0000-0064.safetensors
    <directory>/<save>/<exchange group>/buckets-...safetensors    checkpoints, whose files later ones go on naming

The same files serve checkpoints (with optimizer state) and scoring (ids and rows alone). What they are is listed in
*entries*, which the caller puts into a manifest; a file that no entry names does not exist for us.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.files.changes import Newer
from hvdspark.embedding.files.checked import checked_chunks
from hvdspark.embedding.files.tensor_file import tensors_of, write_columns
from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.embedding.kernels.optimizers import initial_state
from hvdspark.embedding.rows.column import Column
from hvdspark.embedding.rows.protocol import Part, RowStore
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.plain import built
from hvdspark.store import Store
from hvdspark.store.patience import patiently
from hvdspark.store.spellings import checked

FILE_BUCKETS = 64
# Where a file would be larger, it gets fewer buckets: a rank of a larger world owns a few of them and reads it whole,
# and has one in memory at a time.
FILE_BYTES = 1 << 26
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


@dataclass(frozen=True)
class ShardFile:
    """A file that is to be written.

    Attributes:
        entry: without checksum and size.
        columns: by their names in the file; none where there is nothing to write.
    """

    entry: FileEntry
    columns: list[tuple[str, Column]]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        return sum(column.dtype.itemsize * math.prod(column.shape) for _, column in self.columns)

    def copied(self) -> ShardFile:
        """The same, which no longer changes with the shard."""
        return replace(self, columns=[(name, _in_memory(column)) for name, column in self.columns])

    def write(self, store: Store, directory: str) -> FileEntry:
        """Write it; its entry. StoreError where that fails."""
        if not self.columns:
            return replace(self.entry, path=None)
        return patiently(lambda: self._write(store, directory))

    def _write(self, store: Store, directory: str) -> FileEntry:
        with store.open_write(f"{directory}/{self.entry.path}") as file:
            return replace(self.entry, **write_columns(file, self.columns))


def file_ranges(first: int, stop: int, width: int = FILE_BUCKETS) -> list[tuple[int, int]]:
    """The buckets [first, stop) of a rank, cut at multiples of `width`."""
    edges = [first, *range(first // width * width + width, stop, width), stop]
    return [(start, end) for start, end in itertools.pairwise(edges) if start < end]


def write_shards(store: Store, directory: str, shards: Sequence[RowStore], *, state: bool) -> list[dict[str, Any]]:
    """Write this rank's rows of all exchange groups; returns the entries of its files for the manifest, JSON-able.

    Not collective. Memory in use is that of one file's ids. Every file appears whole or not at all; files of an earlier
    save that are not overwritten are left there.

    Args:
        shards: of the groups, in order.
        state: also what training needs to go on: optimizer state, last steps, ids that wait for admission.

    Raises:
        StoreError: a file cannot be written.
    """
    return [file.write(store, directory).plain() for file in shard_files(shards, state=state)]


def shard_files(shards: Sequence[RowStore], *, state: bool, delta: int = 0, save: str = "") -> Iterator[ShardFile]:
    """The files of this rank's rows of all exchange groups; each is valid until the next is asked for, or is copied.

    Args:
        shards: of the groups, in order.
        state: see `write_shards`.
        delta: more than 0: of what has changed since the last `RowStore.watch`, with state.
        save: folder of the files.
    """
    for number, shard in enumerate(shards):
        # Few rows change, and a file for each 64 buckets would be many small ones.
        width = BUCKETS if delta and _bytes_changed(shard) < FILE_BYTES else _file_buckets(shard, state)
        for part in shard.parts(file_ranges(*shard.buckets, width), changed=delta > 0):
            rows = {table.name: len(ids) for table, ids in zip(shard.tables, part.ids, strict=True)}
            path = f"{number}/buckets-{part.first:04d}-{part.stop:04d}.safetensors"
            path = f"{save}/{path}" if save else path
            entry = FileEntry(path, number, part.first, part.stop, rows, state, delta=delta)
            yield ShardFile(entry, _columns_of(shard.tables, part, state))


def bytes_changed(shards: Sequence[RowStore]) -> int:
    """Bytes, about, of the rows that have changed since the last `RowStore.watch`, with state."""
    return sum(_bytes_changed(shard) for shard in shards)


def read_shards(
    store: Store,
    directory: str,
    entries: Iterable[Mapping[str, Any]],
    shards: Sequence[RowStore],
    *,
    steps: int,
    absent: Mapping[str, Mapping[str, float]] | None = None,
    tables: Container[str] | None = None,
    rows_alone: bool = False,
) -> None:
    """Load this rank's rows into its shards, which must be new, from what any number of ranks wrote.

    Where there are files of changes the newest are read first, and older ones tell what those have not: so nothing that
    was dropped comes back, and each row is loaded once.

    Not collective. Reads only files that have buckets of this rank, one at a time, and uses none before its checksum
    was compared. Tables are found by name: the groups may be others than those that were saved.

    Args:
        entries: of all ranks' files.
        shards: all of one rank. Of no use any more after an error.
        steps: updates that the tables had when they were saved.
        absent: what the files do not have, see `description.absent_state`.
        tables: that are loaded, by name; None: all of the shards.
        rows_alone: optimizer state begins anew, and no id waits for admission, whatever the files have of both. They
            may be those for scoring.

    Raises:
        CheckpointError: a file is missing or damaged, was written without state, or does not fit the tables.
    """
    files = parse_entries(entries, directory)
    wanted = [
        (shard, place, table.name)
        for shard in shards
        for place, table in enumerate(shard.tables)
        if tables is None or table.name in tables
    ]
    deltas = sorted({file.delta for file in files})
    newest = deltas[-1] if deltas else 0
    if deltas != list(range(len(deltas))):
        raise CheckpointError("files of changes are missing", value=f"there are {deltas}", where=directory)
    for delta in deltas or [0]:
        for shard, _, name in wanted:
            file_of_buckets([file for file in files if file.delta == delta], name, *shard.buckets, directory)
    for shard in shards:
        shard.resume(steps)
    newer = Newer(newest)
    for file in sorted(files, key=lambda file: -file.delta):
        takers = [
            (shard, place, name)
            for shard, place, name in wanted
            if name in file.rows and max(file.first, shard.buckets[0]) < min(file.stop, shard.buckets[1])
        ]
        if not takers or file.path is None:
            continue
        if not file.state and not rows_alone:
            raise CheckpointError(
                "the rows were written for scoring, without what training needs to go on",
                value=file.path,
                where=directory,
                hint="load a checkpoint",
            )
        tensors = _by_table(read_file(store, directory, file))
        for shard, place, name in takers:
            found = tensors.get(name, {})
            for tensor, value in (absent or {}).get(name, {}).items():
                found.setdefault(tensor, torch.full((file.rows[name],), value))
            found = newer.left(name, found, file.delta)
            shard.load(place, _with_fresh_state(found, shard, steps) if rows_alone and found else found)


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


def tensor_name(table: str, tensor: str) -> str:
    """Name in a file of a tensor of `Part.columns`."""
    return f"{table}/{tensor}"


def verified_chunks(store: Store, directory: str, file: FileEntry) -> Iterator[bytes]:
    """The content of a file that there is, see `checked_chunks`."""
    return checked_chunks(store, f"{directory}/{file.path}", file.bytes, file.sha256, FILE_OF_ROWS)


def _file_buckets(shard: RowStore, state: bool) -> int:
    """Buckets of a file: so many that it stays below FILE_BYTES, if one bucket does. A power of two."""
    first, stop = shard.buckets
    of_a_bucket = _row_bytes(shard, state=state) * sum(shard.row_counts()) / max(1, stop - first)
    width = FILE_BUCKETS
    while width > 1 and width * of_a_bucket > FILE_BYTES:
        width //= 2
    return width


def _row_bytes(shard: RowStore, *, state: bool) -> int:
    row = shard.dim * shard.dtype.itemsize + 8
    if state:
        shapes = shard.optimizer.state_shapes(shard.dim).values()
        row += 4 * (2 + sum(math.prod(shape) for shape in shapes))
    return row


def _columns_of(tables: Sequence[TableConfig], part: Part, state: bool) -> list[tuple[str, Column]]:
    """The tensors of a part by their names in its file; none where it has no rows, and no id waits or was dropped."""
    some = [*part.ids, *part.dropped, *(part.waiting if state else ())]
    if not any(len(ids) for ids in some):
        return []
    columns = [part.columns(place, state=state) for place in range(len(tables))]
    # All tables' ids, then all tables' next tensors, ...: so they are one run each to `frozen.FrozenGroup`.
    return [
        (tensor_name(table.name, column.name), column)
        for kind in zip(*columns, strict=True)
        for table, column in zip(tables, kind, strict=True)
    ]


def _in_memory(column: Column) -> Column:
    whole = torch.cat([block.clone() for block in column.blocks()]).reshape(column.shape)
    return replace(column, blocks=lambda: [whole])


def _bytes_changed(shard: RowStore) -> int:
    return shard.rows_changed() * _row_bytes(shard, state=True)


def read_file(store: Store, directory: str, file: FileEntry) -> dict[str, Tensor]:
    """The tensors of a file that there is, in memory, by `tensor_name`. Raises CheckpointError where it is damaged."""
    data = bytearray()  # what the file has, not what is said of it
    for chunk in verified_chunks(store, directory, file):
        data += chunk
    return tensors_of(data, store.spark_uri(f"{directory}/{file.path}"))


def _with_fresh_state(found: Mapping[str, Tensor], shard: RowStore, steps: int) -> dict[str, Tensor]:
    """A table's ids, counts and rows, as of rows that were never updated, but last met in step `steps`."""
    rows, none = found["rows"], torch.zeros(0, dtype=torch.int32)
    ones = torch.ones(len(rows), dtype=torch.int32)  # files of earlier versions have no counts
    state = initial_state(shard.optimizer, rows.float())
    return {
        "ids": found["ids"],
        "rows": rows,
        "counts": found.get("counts", ones),
        "last_step": torch.full_like(ones, steps),
        **{f"state.{name}": values for name, values in state.items()},
        "waiting_ids": none.long(),
        "waiting_counts": none,
        "waiting_ages": none,
    }


def _by_table(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of a file, by table and by their name there."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        table, _, kind = name.rpartition("/")  # tables may have slashes in their names
        found.setdefault(table, {})[kind] = tensor
    return found
