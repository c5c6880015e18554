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

from hvdspark.embedding.arrays import NUMPY_DTYPES, Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.files.entries import FileEntry, file_of_buckets, parse_entries
from hvdspark.embedding.files.shards import tensor_name
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

    device = torch.device("cpu")

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
        # For each segment the ids in it, and where it begins and ends in its file's run; empty until that is mapped.
        segments = len(self._entries) * len(self.tables)
        self._ids: list[Int64Array] = [np.empty(0, dtype=np.int64)] * segments
        self._starts, self._stops = np.zeros(segments, dtype=np.int64), np.zeros(segments, dtype=np.int64)

    @property
    def mapped_files(self) -> int:
        """Files that were mapped so far."""
        return len(self._files)

    def rows(self, keys: Tensor) -> Tensor:
        """The rows of unique keys. int64 [U] -> float32 [U, D]

        Args:
            keys: fused by `key_space`, with valid ids.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        first = self.tables[0]
        if not len(keys):
            return torch.zeros(0, first.dim)
        fused = keys.numpy()
        tables = self.key_space.tables_of(fused)
        # A segment is the rows of one table in one file. Few files and tables: their numbers are sorted by counting.
        segments = self._entry_of[tables, self.key_space.buckets(keys).numpy()] * len(self.tables) + tables
        narrow = np.uint16 if len(self._ids) <= 1 << 16 else np.int64
        order = fused.argsort()  # what is searched for in ascending order is found sooner
        order = order[segments[order].astype(narrow).argsort(kind="stable")]
        segments, sought = segments[order], self.key_space.ids_of(fused)[order]
        numbers = segments // len(self.tables)
        of_files = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1)).tolist()
        files = [self._file(number) for number in numbers[of_files[:-1]].tolist()]
        places = self._starts.take(segments) + self._search(segments, sought)
        known = places < self._stops.take(segments)
        found = np.empty((len(fused), first.dim), dtype=NUMPY_DTYPES[first.torch_dtype])
        for file, start, stop in zip(files, of_files, of_files[1:], strict=False):
            if file is None or not len(file.ids):
                continue
            here = places[start:stop]
            known[start:stop] &= file.ids.take(here, mode="clip") == sought[start:stop]
            file.rows.take(here, axis=0, out=found[start:stop], mode="clip")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        rows = torch.from_numpy(found.take(place, axis=0)).view(first.torch_dtype).float()
        if not known.all():
            self._fill(rows, order[~known], fused)
        return rows

    def _search(self, segments: Int64Array, ids: Int64Array) -> Int64Array:
        """How many ids of its segment are below each id: int64 [n], ascending, int64 [n] -> int64 [n]."""
        edges = np.flatnonzero(np.diff(segments, prepend=-1, append=-1)).tolist()
        numbers = segments[edges[:-1]].tolist()
        # As little Python as there can be: files x tables turns for each batch.
        pairs = zip(numbers, edges, edges[1:], strict=False)
        below = [self._ids[number].searchsorted(ids[start:stop]) for number, start, stop in pairs]
        return np.concatenate(below)

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
            file = self._files[number] = _MappedFile(self._locate(entry), entry, self.tables)
            for segment, (start, stop) in enumerate(file.segments, number * len(self.tables)):
                self._ids[segment] = file.ids[start:stop]
                self._starts[segment], self._stops[segment] = start, stop
        return self._files[number]


class _MappedFile:
    """Tensors of one file: the ids of all its tables are one run of memory, their rows another.

    Attributes:
        ids: int64 [n]; ascending within a table.
        rows: [n, D] in the numpy dtype that has the table's bits.
        segments: for each table of the group, [start, stop) of the run.
    """

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
        self.ids = _run(data, [ids[name] for name in order], (), torch.int64, str(path))
        self.rows = _run(data, [rows[name] for name in order], (dim,), dtype, str(path))
        ends = dict(zip(order, np.cumsum([ids[name].shape[0] for name in order]).tolist(), strict=True))
        self.segments = [
            (ends[table.name] - ids[table.name].shape[0], ends[table.name]) if table.name in ends else (0, 0)
            for table in tables
        ]


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
