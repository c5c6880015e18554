"""What every reader of row groups must do. A new reader is one more line in READERS."""

from __future__ import annotations

import collections
import errno
import io
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hvdspark.data.dataset.footers import read_footer
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import plan_epoch
from hvdspark.data.readers import petastorm, slices
from hvdspark.data.readers.petastorm import PetastormReader
from hvdspark.data.readers.protocol import Columns, OpenReader, Piece, RowGroupReader, Sink
from hvdspark.data.readers.slices import columns_of, errors_named, read_slices
from hvdspark.errors import DataError, StoreError
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups
from hvdspark.store import Store, patience

COLUMNS = (
    ColumnSpec("id", "int64", "scalar"),
    ColumnSpec("v", "float32", "fixed", 2),
    ColumnSpec("history", "int64", "ragged"),
)
GROUP = 100


class PlainReader:
    """Reads with pyarrow when it is waited for, in the thread that waits."""

    def __init__(self, store: Store, dataset: str, columns: Sequence[ColumnSpec], sink: Sink) -> None:
        self._store, self._dataset, self._columns, self._sink = store, dataset, columns, sink
        self._asked: collections.deque[tuple[RowGroup, Sequence[Piece]]] = collections.deque()
        self._stopped = threading.Event()
        self._changed = threading.Condition()

    def read(self, group: RowGroup, pieces: Sequence[Piece]) -> None:
        with self._changed:
            self._asked.append((group, pieces))
            self._changed.notify_all()

    def wait_for_one(self) -> Sequence[Piece]:
        with self._changed:
            if not self._changed.wait_for(lambda: self._asked or self._stopped.is_set(), petastorm.READ_TIMEOUT_S):
                raise StoreError("no row group arrived")
            if self._stopped.is_set():
                raise StoreError("reading was stopped")
            group, pieces = self._asked.popleft()
        path = f"{self._dataset}/{group.path}"
        with errors_named(self._store, path):
            names = [column.name for column in self._columns]
            first = 0
            for batch in read_slices(self._store, path, group, read_footer(self._store, path), names):
                columns, last = columns_of(batch, self._columns), first + batch.num_rows
                for piece in pieces:
                    start, stop = max(piece.start, first), min(piece.stop, last)
                    if start < stop:
                        self._sink(Piece(start, stop, piece.window, piece.at + start - piece.start), columns, first)
                first = last
        return pieces

    def stop(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def join(self) -> None:
        pass


READERS: dict[str, OpenReader] = {"petastorm": PetastormReader, "plain": PlainReader}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> OpenReader:
    return READERS[request.param]


class Collected:
    """A sink that keeps the ids of each window by their place, after checking the other columns against them."""

    def __init__(self) -> None:
        self.windows: dict[int, dict[int, int]] = collections.defaultdict(dict)
        self.parts: list[Piece] = []
        self._lock = threading.Lock()

    def __call__(self, piece: Piece, columns: Columns, first: int) -> None:
        rows = slice(piece.start - first, piece.stop - first)
        ids = columns.dense["id"][rows]
        assert np.array_equal(columns.dense["v"][rows], np.stack([ids, ids + 1], 1).astype(np.float32))
        history = columns.ragged["history"].rows(rows.start, rows.stop)
        assert np.array_equal(np.diff(history.offsets), ids % 3)
        assert np.array_equal(history.values[history.offsets[0] : history.offsets[-1]], np.repeat(ids, ids % 3))
        with self._lock:
            self.parts.append(piece)
            for place, number in enumerate(ids.tolist(), piece.at):
                assert place not in self.windows[piece.window], "each row of a window once"
                self.windows[piece.window][place] = number

    def ids(self, window: int) -> list[int]:
        found = self.windows[window]
        return [found[place] for place in range(len(found))]


def write(store: Store, files: int = 2, groups: int = 3) -> list[RowGroup]:
    """Files of row groups of GROUP rows; ids count over all of them."""
    store.make_directory("d")
    for file in range(files):
        ids = np.arange(groups * GROUP) + file * groups * GROUP
        table = pa.table(
            {
                "id": ids,
                "v": list(np.stack([ids, ids + 1], 1).astype(np.float32)),
                "history": pa.array([[number] * (number % 3) for number in ids.tolist()], pa.list_(pa.int64())),
            }
        )
        pq.write_table(table, store.local_path(f"d/{file}.parquet"), row_group_size=GROUP)
    return [RowGroup(f"{file}.parquet", index, GROUP) for file in range(files) for index in range(groups)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    before = set(threading.enumerate())
    yield Store(str(tmp_path))
    assert not set(threading.enumerate()) - before, "no thread outlives a reader"
    opened = [file.path for file in psutil.Process().open_files() if file.path.endswith(".parquet")]
    assert not opened, "no file stays open"


def read_all(opened: RowGroupReader, asked: Sequence[tuple[RowGroup, Sequence[Piece]]]) -> list[Sequence[Piece]]:
    """What comes back of each call, in any order; the reader is closed."""
    try:
        for group, pieces in asked:
            opened.read(group, pieces)
        return [opened.wait_for_one() for _ in asked]
    finally:
        opened.stop()
        opened.join()


def test_rows_go_where_they_are_to_go(store: Store, reader: OpenReader) -> None:
    groups, sink = write(store), Collected()
    asked = [
        (groups[4], [Piece(10, 30, 0, 0), Piece(90, 100, 0, 20)]),
        (groups[0], [Piece(0, 100, 0, 30)]),
        (groups[3], [Piece(99, 100, 1, 0)]),
    ]
    came_back = read_all(reader(store, "d", COLUMNS, sink), asked)
    assert sorted(map(str, came_back)) == sorted(str(pieces) for _, pieces in asked)
    assert sink.ids(0) == [*range(410, 430), *range(490, 500), *range(100)]
    assert sink.ids(1) == [399]


def test_a_row_group_is_read_on_where_it_was_left(
    store: Store, reader: OpenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "_SLICE_BYTES", 7 * 40)
    groups, sink = write(store), Collected()
    cuts = [0, 3, 50, 51, 100]
    asked = [(groups[1], [Piece(start, stop, start, 0)]) for start, stop in itertools.pairwise(cuts)]
    read_all(reader(store, "d", COLUMNS, sink), [*asked, (groups[0], [Piece(5, 6, 200, 0)])])
    assert [sink.ids(start) for start in cuts[:-1]] == [
        list(range(100 + start, 100 + stop)) for start, stop in itertools.pairwise(cuts)
    ]
    assert sink.ids(200) == [5]


def test_pieces_are_cut_where_slices_end(store: Store, reader: OpenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MAX_CHUNK_ROWS", 40)
    groups, sink = write(store), Collected()
    read_all(reader(store, "d", COLUMNS, sink), [(groups[2], [Piece(10, 75, 0, 0), Piece(75, 80, 0, 65)])])
    rows = 34  # 100 rows are three equal slices
    assert sorted((part.start, part.stop, part.at) for part in sink.parts) == [
        (10, rows, 0),
        (rows, 2 * rows, rows - 10),
        (2 * rows, 75, 2 * rows - 10),
        (75, 80, 65),
    ]


def test_a_row_group_is_read_on_where_reading_broke_off(
    store: Store, reader: OpenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "MAX_CHUNK_ROWS", 40)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)
    decoded, attempts = pq.ParquetFile.iter_batches, itertools.count()

    def breaks_off(file: Any, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        """After no slice, after one, after two; then no more."""
        given = next(attempts)
        batches = decoded(file, *args, **kwargs)
        yield from batches if given > 2 else itertools.islice(batches, given)
        if given <= 2:
            raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", breaks_off)
    groups, sink = write(store), Collected()
    read_all(reader(store, "d", COLUMNS, sink), [(groups[2], [Piece(0, 100, 0, 0)])])
    assert sink.ids(0) == list(range(200, 300))
    assert next(attempts) == 4


def test_rows_of_a_store_that_fails_for_a_while(
    store: Store, reader: OpenReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, sink, remote = write(store), Collected(), Store(f"memory://{uuid.uuid4().hex}")
    for path in {group.path for group in groups}:
        remote.copy_from(store, f"d/{path}", f"d/{path}")
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.001)
    open_read, reads, failed = Store.open_read, itertools.count(1), []

    class BreaksOff(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if next(reads) % 3 == 0:
                failed.append(size)
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            return super().read(size)

    def opened(store: Store, path: str) -> Any:
        with open_read(store, path) as file:
            return BreaksOff(file.read())

    monkeypatch.setattr(Store, "open_read", opened)
    asked = [(group, [Piece(0, GROUP, 0, number * GROUP)]) for number, group in enumerate(groups)]
    read_all(reader(remote, "d", COLUMNS, sink), asked)
    assert sink.ids(0) == list(range(len(groups) * GROUP))
    assert failed


def test_a_missing_file_is_named(store: Store, reader: OpenReader) -> None:
    write(store)
    with pytest.raises(StoreError, match=r"d/none\.parquet"):
        read_all(reader(store, "d", COLUMNS, Collected()), [(RowGroup("none.parquet", 0, GROUP), [Piece(0, 1, 0, 0)])])


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"id": pa.array([1, None], pa.int64())}, "nulls in a dataset: 1"),
        ({"id": pa.array([1, 2], pa.int32())}, "wrong type in a dataset: 'int32'"),
        ({"id": pa.array([1, 2, 3], pa.int64())}, "has changed"),
        ({"other": pa.array([1, 2], pa.int64())}, r"cannot be decoded.*d/a\.parquet"),
    ],
)
def test_a_file_that_is_not_what_the_spec_says(
    store: Store, reader: OpenReader, table: dict[str, Any], says: str
) -> None:
    store.make_directory("d")
    pq.write_table(pa.table(table), store.local_path("d/a.parquet"))
    opened = reader(store, "d", COLUMNS[:1], lambda *_: None)
    with pytest.raises(DataError, match=says):
        read_all(opened, [(RowGroup("a.parquet", 0, 2), [Piece(0, 2, 0, 0)])])


def test_a_sink_that_fails_is_an_error_of_the_wait(store: Store, reader: OpenReader) -> None:
    groups = write(store)

    def sink(piece: Piece, columns: Columns, first: int) -> None:
        raise ValueError("no room")

    with pytest.raises(DataError, match="no room"):
        read_all(reader(store, "d", COLUMNS, sink), [(groups[0], [Piece(0, 1, 0, 0)])])


def test_stopping_ends_a_wait(store: Store, reader: OpenReader) -> None:
    groups, sink = write(store), Collected()
    opened = reader(store, "d", COLUMNS, sink)
    opened.read(groups[0], [Piece(0, 50, 0, 0)])  # half of a row group: its file may stay open
    opened.wait_for_one()
    found: list[BaseException] = []

    def wait() -> None:
        try:
            opened.wait_for_one()
        except StoreError as error:
            found.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    started = time.monotonic()
    opened.stop()
    waiting.join(30)
    opened.join()
    assert time.monotonic() - started < 10
    assert "reading was stopped" in str(found[0])


def test_nothing_arrives_in_time(store: Store, reader: OpenReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(petastorm, "READ_TIMEOUT_S", 0.1)
    opened = reader(store, "d", COLUMNS, Collected())
    with pytest.raises(StoreError, match="no row group arrived"):
        opened.wait_for_one()
    opened.stop()
    opened.join()


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_do_not_depend_on_the_reader(store: Store, monkeypatch: pytest.MonkeyPatch, shuffle: bool) -> None:
    monkeypatch.setattr(slices, "MAX_CHUNK_ROWS", 40)
    dataset = DatasetSpec("d", COLUMNS, RowGroups.of(write(store)))

    def batches(**reader: Any) -> list[torch.Tensor]:
        found = []
        for start_row in (0, 240):
            plan = plan_epoch(dataset.train.rows, 60, 2, 1, 3, 0, shuffle, start_row, streams=3)
            with load_batches(
                store, dataset, "train", plan, ["id"], shuffle_rows=90, seed=3, epoch=0, shuffle=shuffle, **reader
            ) as loaded:
                found += [batch.columns["id"] for batch in loaded]
        return found  # type: ignore[return-value]

    expected = batches()
    for opened in READERS.values():
        assert all(torch.equal(*pair) for pair in zip(batches(reader=opened), expected, strict=True))
