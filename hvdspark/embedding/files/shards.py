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
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.files.changes import Newer
from hvdspark.embedding.files.checked import checked_chunks
from hvdspark.embedding.files.entries import FILE_OF_ROWS, FileEntry, file_of_buckets, parse_entries
from hvdspark.embedding.files.kept import KEEPS_NOTHING, KeptFiles
from hvdspark.embedding.files.tensor_file import tensors_of, write_columns
from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.embedding.kernels.optimizers import initial_state
from hvdspark.embedding.rows.column import Column
from hvdspark.embedding.rows.protocol import Part, RowStore
from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from hvdspark.store.patience import patiently

FILE_BUCKETS = 64
# Where a file would be larger, it gets fewer buckets: a rank of a larger world owns a few of them and reads it whole,
# and has one in memory at a time.
FILE_BYTES = 1 << 26
# Few rows change, and a file for each 64 buckets would be many small ones. But ranks of another number read parts.
_CHANGES_BYTES, _MOST_FILES_OF_CHANGES = 1 << 20, 8


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

    def write(self, store: Store, directory: str, kept: KeptFiles = KEEPS_NOTHING) -> FileEntry:
        """Write it, and the copy that this host keeps; its entry. StoreError where that fails."""
        if not self.columns:
            return replace(self.entry, path=None)
        return patiently(lambda: self._write(store, f"{directory}/{self.entry.path}", kept))

    def _write(self, store: Store, path: str, kept: KeptFiles) -> FileEntry:
        # With state: of a checkpoint, which is read where ranks die; without, of a model, which is scored next.
        with store.open_write(path, cached=not self.entry.state) as file, kept.beside(path, file, self.bytes) as both:
            return replace(self.entry, **write_columns(both, self.columns))


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
        width = _buckets_of_changes(shard) if delta else _file_buckets(shard, state)
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
    kept: KeptFiles = KEEPS_NOTHING,
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
        kept: what this host has of the files.

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
        tensors = _by_table(read_file(store, directory, file, kept))
        for shard, place, name in takers:
            found = tensors.get(name, {})
            for tensor, value in (absent or {}).get(name, {}).items():
                found.setdefault(tensor, torch.full((file.rows[name],), value))
            found = newer.left(name, found, file.delta)
            shard.load(place, _with_fresh_state(found, shard, steps) if rows_alone and found else found)


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


def _buckets_of_changes(shard: RowStore) -> int:
    """Buckets of a file of changes. A power of two."""
    changed = _bytes_changed(shard)
    if changed >= FILE_BYTES:
        return _file_buckets(shard, state=True)
    first, stop = shard.buckets
    files = min(_MOST_FILES_OF_CHANGES, max(1, changed // _CHANGES_BYTES))
    width = BUCKETS
    while files > 1 and width > FILE_BUCKETS and width * files > stop - first:
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
    whole = torch.empty(column.shape, dtype=column.dtype)
    left = whole.reshape(-1).view(torch.uint8)
    for block in column.byte_blocks():  # one copy of each, into one new piece of memory: training waits for it
        left[: len(block)].copy_(block)
        left = left[len(block) :]
    if len(left):
        raise AssertionError(f"blocks of {column.name} end {len(left)} bytes too early")
    return replace(column, blocks=lambda: [whole])


def _bytes_changed(shard: RowStore) -> int:
    return shard.rows_changed() * _row_bytes(shard, state=True)


def read_file(store: Store, directory: str, file: FileEntry, kept: KeptFiles = KEEPS_NOTHING) -> dict[str, Tensor]:
    """The tensors of a file that there is, in memory, by `tensor_name`. Raises CheckpointError where it is damaged."""
    path = f"{directory}/{file.path}"
    return tensors_of(kept.read(store, path, file.bytes, file.sha256, FILE_OF_ROWS), store.spark_uri(path))


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
