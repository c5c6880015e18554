"""Tables that are only read, for scoring: looked up in memory-mapped files, which the processes of a host share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.arrays import NUMPY_DTYPES, BoolArray, Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.files.shards import FileEntry, file_of_buckets, parse_entries, tensor_name
from hvdspark.embedding.files.tensor_file import Extent, extents
from hvdspark.embedding.ids.hashing import BUCKETS, salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.errors import CheckpointError


class FrozenGroup:
    """The rows of one exchange group, as `files.write_shards` wrote them at any world size, with or without state.

    A file is mapped when a key of its buckets is first asked for, and only the pages that are touched are ever read.
    Ids are found by binary search; there is no index. Nothing is inserted: ids never seen in training give their
    initial row in a bounded table and zeros in an unbounded one, just like `TableShard`.

    Args:
        tables: of the group, in the order of its `KeySpace`; one (dim, dtype).
        home_buckets: see `KeySpace`.
        seed: of the initial rows.
        entries: of the directory's files, from the manifest.
        locate: gives the local path of a file, see `host_copies.locate_files`.

    Raises:
        CheckpointError: there is a bucket of which no entry says where its rows are.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        home_buckets: Sequence[int],
        seed: int,
        entries: Iterable[Mapping[str, Any]],
        locate: Callable[[FileEntry], Path],
    ) -> None:
        self.tables = tuple(tables)
        self.key_space = KeySpace(tables, home_buckets)
        self._seed, self._locate = seed, locate
        self._entries = parse_entries(entries, "the manifest")
        # Number of the entry for every (table, bucket).
        self._entry_of = np.stack(
            [file_of_buckets(self._entries, table.name, 0, BUCKETS, "the manifest") for table in tables]
        )
        self._files: dict[int, _MappedFile] = {}

    @property
    def mapped_files(self) -> int:
        """Files that were mapped so far."""
        return len(self._files)

    def rows(self, keys: Tensor) -> Tensor:
        """The rows of unique, ascending keys. int64 [U] -> float32 [U, D]

        Args:
            keys: fused by `key_space`, with valid ids.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        fused = keys.numpy()
        numbers = self._entry_of[self.key_space.tables_of(fused), self.key_space.buckets(keys).numpy()]
        order = numbers.argsort(kind="stable")  # keys of one file stay ascending
        numbers, sought = numbers[order], fused[order]
        first = self.tables[0]
        found = np.empty((len(fused), first.dim), dtype=NUMPY_DTYPES[first.torch_dtype])
        known = np.zeros(len(fused), dtype=bool)
        edges = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)).tolist()
        for start, stop in itertools.pairwise(edges):
            file = self._file(int(numbers[start]))
            if file is not None:
                file.look_up(sought[start:stop], self.key_space, found[start:stop], known[start:stop])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        rows = torch.from_numpy(found.take(place, axis=0)).view(first.torch_dtype).float()
        if not known.all():
            self._fill(rows, order[~known], fused)
        return rows

    def _fill(self, rows: Tensor, missing: Int64Array, fused: Int64Array) -> None:
        rows[torch.from_numpy(missing)] = 0
        tables = self.key_space.tables_of(fused[missing])
        for number in np.unique(tables):
            table = self.tables[number]
            if table.num_embeddings is not None:
                mine = missing[tables == number]
                ids = torch.from_numpy(self.key_space.ids_of(fused[mine]))
                fresh = initial_rows(ids, table.dim, self._seed, salt_of("table", table.name), table.init)
                rows[torch.from_numpy(mine)] = fresh.to(table.torch_dtype).float()

    def _file(self, number: int) -> _MappedFile | None:
        entry = self._entries[number]
        if entry.path is None:
            return None
        if number not in self._files:
            self._files[number] = _MappedFile(self._locate(entry), entry, self.tables)
        return self._files[number]


class _MappedFile:
    """Tensors of one file: the ids of all its tables are one run of memory, their rows another."""

    def __init__(self, path: Path, entry: FileEntry, tables: Sequence[TableConfig]) -> None:
        try:
            # np.asarray: the subclass np.memmap costs more than a lookup.
            data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                "a file of embedding rows cannot be mapped", value=f"{type(error).__name__}: {error}", where=str(path)
            ) from error
        found = extents(data, str(path))
        try:
            ids = {name: found[tensor_name(name, "ids")] for name in entry.rows}
            rows = {name: found[tensor_name(name, "rows")] for name in entry.rows}
        except KeyError as error:
            raise CheckpointError("a table has no tensor in its file", value=str(error), where=str(path)) from error
        order = sorted(entry.rows, key=lambda name: (ids[name].start, ids[name].stop))
        dim, dtype = tables[0].dim, tables[0].torch_dtype
        self._ids = _run(data, [ids[name] for name in order], (), torch.int64, str(path))
        self._rows = _run(data, [rows[name] for name in order], (dim,), dtype, str(path))
        ends = dict(zip(order, np.cumsum([ids[name].shape[0] for name in order]).tolist(), strict=True))
        # For each table of the group its ids, and where they begin in the run.
        self._tables = [
            (self._ids[ends[table.name] - ids[table.name].shape[0] : ends[table.name]], ends[table.name])
            if table.name in ends
            else (self._ids[:0], 0)
            for table in tables
        ]

    def look_up(self, keys: Int64Array, space: KeySpace, found: NDArray[Any], known: BoolArray) -> None:
        """Copy the rows of ascending keys into `found`, and say in `known` which ones are there."""
        tables = space.tables_of(keys)
        sought = space.ids_of(keys)
        places = np.empty(len(keys), dtype=np.int64)
        start = 0
        while start < len(keys):
            table = int(tables[start])
            stop = int(tables.searchsorted(table, side="right")) if tables[-1] != table else len(keys)
            ids, end = self._tables[table]
            if len(ids):
                here = ids.searchsorted(sought[start:stop])
                here += end - len(ids)
                np.minimum(here, end - 1, out=places[start:stop])
            else:
                places[start:stop] = -1
            start = stop
        if len(self._ids):
            np.equal(self._ids.take(places, mode="clip"), sought, out=known)
            known &= places >= 0
            self._rows.take(places, axis=0, out=found, mode="clip")


def _run(
    data: NDArray[np.uint8], parts: Sequence[Extent], row_shape: tuple[int, ...], dtype: torch.dtype, where: str
) -> NDArray[Any]:
    """Tensors that lie one after the other, as one [n, *row_shape]."""
    fits = all(part.dtype == dtype and part.shape[1:] == row_shape for part in parts)
    if not fits or any(left.stop != right.start for left, right in itertools.pairwise(parts)):
        raise CheckpointError(
            "tensors of a file are not where they belong",
            value=f"{dtype} {row_shape} wanted",
            where=where,
            hint="the file is of other tables, or was not written by hvdspark",
        )
    return data[parts[0].start : parts[-1].stop].view(NUMPY_DTYPES[dtype]).reshape(-1, *row_shape)
