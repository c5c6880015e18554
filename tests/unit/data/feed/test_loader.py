"""The loader over small Parquet files written with pyarrow: what arrives, in which order, and how it ends."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hvdspark.data.feed import loader, window
from hvdspark.data.feed.batch import Layout
from hvdspark.data.feed.loader import Batch, Ragged, load_batches
from hvdspark.data.feed.plan import EpochPlan, plan_epoch
from hvdspark.data.readers import petastorm, slices
from hvdspark.errors import ConfigurationError, DataError, StoreError
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups
from hvdspark.store import Store

BIG = 1 << 62
COLUMNS = (
    ColumnSpec("id", "int64", "scalar"),
    ColumnSpec("x", "float32", "scalar"),
    ColumnSpec("v", "float32", "fixed", 2),
    ColumnSpec("history", "int64", "ragged"),
)


def write(store: Store, files: list[int], group: int = 64) -> DatasetSpec:
    """Files of these numbers of rows; every value follows from the row's number."""
    store.make_directory("d/data")
    groups, first = [], 0
    for number, rows in enumerate(files):
        ids = np.arange(first, first + rows)
        lengths = ids % 3
        table = pa.table(
            {
                "unused": pa.array(["text"] * rows),
                "history": pa.ListArray.from_arrays(
                    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), np.repeat(ids + BIG, lengths)
                ),
                "id": ids + BIG,
                "v": pa.ListArray.from_arrays(
                    np.arange(0, 2 * rows + 1, 2, dtype=np.int32), np.repeat(ids, 2).astype(np.float32)
                ),
                "x": ids.astype(np.float32),
            }
        )
        path = f"data/{number}.parquet"
        pq.write_table(table, store.local_path(f"d/{path}"), row_group_size=group)
        metadata = pq.read_metadata(store.local_path(f"d/{path}"))
        for index in range(metadata.num_row_groups):
            row_group = metadata.row_group(index)
            groups.append(RowGroup(path, index, row_group.num_rows))
        first += rows
    return DatasetSpec("d", COLUMNS, RowGroups.of(groups))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    before = set(threading.enumerate())  # a Spark session of other tests has workers too
    yield Store(str(tmp_path / "my store"))
    ours = [
        thread.name
        for thread in set(threading.enumerate()) - before
        if "hvdspark" in thread.name or "Worker" in type(thread).__name__
    ]
    assert not ours, "no thread outlives its loader"


def plan(
    dataset: DatasetSpec, batch: int, world: int = 1, rank: int = 0, shuffle: bool = True, **other: Any
) -> EpochPlan:
    arguments = {"seed": 5, "epoch": 0} | other
    return plan_epoch(dataset.train.rows, batch, world, rank, shuffle=shuffle, **arguments)


def load(store: Store, dataset: DatasetSpec, a_plan: EpochPlan, **options: Any) -> list[torch.Tensor]:
    """The row numbers of each batch, after checking the other columns against them."""
    arguments: dict[str, Any] = {"shuffle_rows": 1 << 19, "seed": 5, "epoch": 0, "shuffle": True} | options
    names = ["x", "history", "id", "v"]
    numbers = []
    with load_batches(store, dataset, "train", a_plan, names, **arguments) as batches:
        for batch in batches:
            number = batch.columns["id"] - BIG  # type: ignore[operator]
            assert (number.dtype, number.shape) == (torch.int64, (batch.rows,))
            assert torch.equal(batch.columns["x"], number.float())
            assert torch.equal(batch.columns["v"], number.float()[:, None].expand(-1, 2))
            history = batch.columns["history"]
            assert isinstance(history, Ragged)
            assert torch.equal(history.offsets.diff(), number % 3)
            assert torch.equal(history.values, torch.repeat_interleave(number + BIG, number % 3))
            numbers.append(number)
    assert tuple(map(len, numbers)) == a_plan.batch_rows
    return numbers


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window", [1, 10, 100, 1 << 19])
@pytest.mark.parametrize("files", [[300, 1, 0, 77], [5]])
def test_every_row_once(store: Store, files: list[int], window: int, shuffle: bool) -> None:
    dataset = write(store, files)
    for world, batch in ((1, 32), (3, 50), (3, 2), (4, 5000)):
        gang = [plan(dataset, batch, world, rank, shuffle) for rank in range(world)]
        parts = [load(store, dataset, part, shuffle_rows=window, shuffle=shuffle) for part in gang]
        every = torch.cat([numbers for part in parts for numbers in part])
        assert torch.equal(every.sort().values, torch.arange(sum(files)))
        if not shuffle:  # the ranks' shares of a global batch, side by side, are the rows in file order
            in_steps = [numbers for step in zip(*parts, strict=True) for numbers in step]
            assert torch.equal(torch.cat(in_steps), torch.arange(sum(files)))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(store, [500, 500, 24])

    def order(**options: Any) -> list[int]:
        return torch.cat(load(store, dataset, plan(dataset, 64, 2, 1, **options), shuffle_rows=200, **options)).tolist()

    first = order(seed=0)
    for threads in (1, 7):
        monkeypatch.setattr(petastorm, "_THREADS", threads)
        assert order(seed=0) == first
    assert order(seed=0, epoch=1) != first
    assert order(seed=1) != first
    assert order(seed=-1) != first


def test_a_window_as_large_as_the_data_is_a_full_shuffle(store: Store) -> None:
    dataset = write(store, [4096])
    numbers = torch.cat(load(store, dataset, plan(dataset, 64)))
    # Rows of one row group of 64 are spread over the whole epoch.
    positions = torch.nonzero(numbers < 64).flatten().float()
    assert positions.std() > 0.8 * 4096 / 12**0.5
    assert (numbers.diff() == 1).sum() < 100


def test_rows_stay_in_their_window(store: Store) -> None:
    dataset = write(store, [1000], group=1000)
    numbers = torch.cat(load(store, dataset, plan(dataset, 50), shuffle_rows=100))
    assert torch.equal(numbers // 100, torch.arange(1000) // 100)
    assert not torch.equal(numbers, torch.arange(1000))


def test_windows_are_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataclasses.replace(write(store, [1000], group=1000), row_bytes=70)
    monkeypatch.setattr(loader, "_WINDOW_BYTES", 100 * 70)
    numbers = torch.cat(load(store, dataset, plan(dataset, 50)))
    assert torch.equal(numbers // 100, torch.arange(1000) // 100)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window", [1, 100, 1 << 19])
def test_an_epoch_goes_on_where_it_stood(store: Store, window: int, shuffle: bool) -> None:
    files, batch, begun = [150, 1, 0, 57], 30, 3
    dataset = write(store, files, group=50)

    def gang(world: int, step: int) -> list[list[torch.Tensor]]:
        options: dict[str, Any] = {"start_row": min(step * batch, sum(files)), "streams": begun}
        parts = [plan(dataset, batch, world, rank, shuffle, **options) for rank in range(world)]
        return [load(store, dataset, part, shuffle_rows=window, shuffle=shuffle) for part in parts]

    whole = gang(begun, 0)
    steps = len(whole[0])
    for step in (1, 4, steps):
        for ranks, left in zip(gang(begun, step), whole, strict=True):
            assert all(torch.equal(*pair) for pair in zip(ranks, left[step:], strict=True)), "bit for bit"
        for world in (1, 2, 5):
            ranks = gang(world, step)
            for number in range(step, steps):
                rows = torch.cat([rank[number - step] for rank in ranks])
                expected = torch.cat([rank[number] for rank in whole])
                assert torch.equal(rows.sort().values, expected.sort().values), "the same global batches"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the numbers of the row groups that are read."""
    read: list[int] = []
    original = petastorm.read_slices

    def reading(store: Store, path: str, group: RowGroup, *arguments: Any) -> Any:
        read.append(group.index)
        return original(store, path, group, *arguments)

    monkeypatch.setattr(petastorm, "read_slices", reading)
    return read


def test_what_is_over_is_not_read(store: Store, read: list[int]) -> None:
    dataset = write(store, [1000], group=50)
    load(store, dataset, plan(dataset, 50, start_row=750), shuffle_rows=100)
    # The batch of row 750 is the second one of its window.
    assert len(read) == len(set(read)) == 20 - 14
    read.clear()
    load(store, dataset, plan(dataset, 50, shuffle=False, start_row=750), shuffle=False)
    assert sorted(read) == [15, 16, 17, 18, 19]


def test_nothing_to_read_is_no_batches(store: Store) -> None:
    dataset = write(store, [])
    assert load(store, dataset, plan(dataset, 10)) == []


def test_ranks_without_rows_still_get_their_batches(store: Store) -> None:
    dataset = write(store, [3])
    shares = [load(store, dataset, plan(dataset, 2, 4, rank)) for rank in range(4)]
    assert all(len(share) == 2 for share in shares)
    assert sum(len(numbers) for share in shares for numbers in share) == 3


def test_closing_early_ends_the_threads(store: Store) -> None:
    dataset = write(store, [5000])
    options: dict[str, Any] = {"shuffle_rows": 100, "seed": 0, "epoch": 0, "shuffle": True, "prefetch": 1}
    with load_batches(store, dataset, "train", plan(dataset, 10), ["id"], **options) as batches:
        assert next(batches).rows == 10
    with pytest.raises(RuntimeError, match="closed"):
        list(batches)
    with load_batches(store, dataset, "train", plan(dataset, 10), ["id"], **options):
        pass


@pytest.mark.parametrize("group", [64, 640])
def test_no_more_than_two_windows_are_read_ahead(store: Store, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    dataset = write(store, [640], group=group)
    alive: list[int] = [0]

    class Counted(window.Window):
        def __init__(self, layout: Layout, capacity: int) -> None:
            super().__init__(layout, capacity)
            assert capacity <= 64
            alive.append(alive[-1] + 1)

        def close(self) -> None:
            super().close()
            alive.append(alive[-1] - 1)

    monkeypatch.setattr(loader, "Window", Counted)
    assert len(load(store, dataset, plan(dataset, 32), shuffle_rows=64)) == 20
    assert len(alive) == 1 + 2 * 10
    assert max(alive) <= 2, "the window that is drained, and the next, however long a row group is"


def test_a_row_group_is_decoded_in_slices(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(store, [1000, 500], group=1000)
    whole = {
        shuffle: load(store, dataset, plan(dataset, 50, 2, 1, shuffle), shuffle=shuffle) for shuffle in (True, False)
    }
    # A row is an id, x, two elements of v and one of history, each with its level; 50 rows of it are a slice.
    monkeypatch.setattr(slices, "_SLICE_BYTES", 50 * (8 + 4 + 2 * (4 + 4) + (8 + 4)))
    decoded: list[int] = []
    original = petastorm.columns_of

    def decode(batch: pa.RecordBatch, columns: Any) -> Any:
        decoded.append(batch.num_rows)
        return original(batch, columns)

    monkeypatch.setattr(petastorm, "columns_of", decode)
    for shuffle, expected in whole.items():
        got = load(
            store, dataset, plan(dataset, 50, 2, 1, shuffle), shuffle=shuffle, shuffle_rows=200 if shuffle else 1
        )
        assert torch.equal(torch.cat(got).sort().values, torch.cat(expected).sort().values)
        if not shuffle:
            assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert max(decoded) <= 50
    assert len(decoded) < 2 * 1500 / 40, "slices before a rank's rows and behind them are not decoded further"


def test_a_row_group_of_any_length_takes_the_memory_of_a_slice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_SLICE_BYTES", 1 << 19)
    rows, width = 3_000_000, 50
    store.make_directory("d")
    nearly_constant = pa.array(np.arange(rows) == 7).cast(pa.float32())
    vector = pa.ListArray.from_arrays(np.arange(0, rows + 1, width, dtype=np.int32), nearly_constant)
    path = store.local_path("d/a.parquet")
    with pq.ParquetWriter(path, pa.schema([("x", pa.float32()), ("v", vector.type)])) as writer:
        # One row group, as Spark writes it: what repeats takes no room in the file.
        writer.write_table(pa.table({"x": nearly_constant[: len(vector)], "v": vector}), row_group_size=len(vector))
    columns = (ColumnSpec("x", "float32", "scalar"), ColumnSpec("v", "float32", "fixed", width))
    dataset = DatasetSpec("d", columns, RowGroups.of([RowGroup("a.parquet", 0, len(vector))]))
    options: dict[str, Any] = {"shuffle_rows": 1 << 12, "seed": 0, "epoch": 0, "shuffle": True}
    held: list[int] = []
    original = petastorm.columns_of

    def decode(*arguments: Any) -> Any:
        held.append(pa.total_allocated_bytes() - before)
        return original(*arguments)

    monkeypatch.setattr(petastorm, "columns_of", decode)
    before = pa.total_allocated_bytes()
    with load_batches(store, dataset, "train", plan(dataset, 500), ["x", "v"], **options) as batches:
        assert sum(batch.rows for batch in batches) == len(vector)
    assert max(held) < rows * 4, "less than the vectors of the row group"


@pytest.mark.parametrize(("shuffle", "most"), [(True, 4 + 2), (False, 4 * 3)])
def test_a_rank_reads_a_row_group_once(store: Store, read: list[int], shuffle: bool, most: int) -> None:
    dataset = write(store, [250], group=64)
    for rank in range(3):
        before = len(read)
        load(store, dataset, plan(dataset, 9, 3, rank, shuffle), shuffle=shuffle)
        assert len(read[before:]) == len(set(read[before:]))
    assert len(read) <= most


def consume(store: Store, dataset: DatasetSpec, names: tuple[str, ...] = ("id",)) -> list[Batch]:
    options: dict[str, Any] = {"shuffle_rows": 100, "seed": 0, "epoch": 0, "shuffle": True}
    with load_batches(store, dataset, "train", plan(dataset, 10), names, **options) as batches:
        return list(batches)


def test_only_ranks_on_a_gpu_use_the_gpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Batch] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a rank on the CPU of a host with a GPU
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: pinned.append(batch) or batch)
    dataset = write(store, [50])
    assert load(store, dataset, plan(dataset, 10))
    assert not pinned
    assert load(store, dataset, plan(dataset, 10), pin=True)
    assert len(pinned) == 5


def test_a_missing_file_is_named(store: Store) -> None:
    dataset = write(store, [50, 50])
    store.delete("d/data/1.parquet")
    with pytest.raises(StoreError, match=r"d/data/1\.parquet"):
        consume(store, dataset)


def test_a_damaged_file_is_named(store: Store) -> None:
    dataset = write(store, [50, 50])
    path = store.local_path("d/data/1.parquet")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[100:-2000] = bytes(len(data) - 2100)
    path.write_bytes(bytes(data))
    with pytest.raises((StoreError, DataError), match=r"1\.parquet|decoded"):
        consume(store, dataset, ("id", "x", "v", "history"))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"id": pa.array([1, None], pa.int64())}, "nulls in a dataset: 1"),
        ({"id": pa.array([1, 2], pa.int32())}, "wrong type in a dataset: 'int32'"),
        ({"id": pa.array([1, 2, 3], pa.int64())}, "has changed"),
        ({"other": pa.array([1, 2], pa.int64())}, "cannot be decoded"),
    ],
)
def test_files_that_are_not_what_the_spec_says(store: Store, table: dict[str, Any], says: str) -> None:
    dataset = DatasetSpec("d", COLUMNS, RowGroups.of([RowGroup("a.parquet", 0, 2)]))
    store.make_directory("d")
    pq.write_table(pa.table(table), store.local_path("d/a.parquet"))
    with pytest.raises(DataError, match=says):
        consume(store, dataset)


def test_a_store_that_hangs_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, let_go = write(store, [50]), threading.Event()
    monkeypatch.setattr(petastorm, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(petastorm, "read_slices", lambda *_: let_go.wait(30))
    threading.Timer(1.0, let_go.set).start()
    with pytest.raises(StoreError, match="no row group arrived"):
        consume(store, dataset)


def test_bad_arguments(store: Store) -> None:
    dataset = write(store, [5])
    with pytest.raises(ConfigurationError, match="nope"):
        consume(store, dataset, ("id", "nope"))
    with pytest.raises(ConfigurationError, match="test"), load_batches(
        store, dataset, "test", plan(dataset, 5), ["id"], shuffle_rows=1, seed=0, epoch=0, shuffle=False
    ):  # fmt: skip
        pass


def test_any_store_that_fsspec_knows(store: Store) -> None:
    dataset = write(store, [100, 50])
    remote = Store("memory://test-loader/store")
    for name in store.list("d/data"):
        remote.write_bytes(f"d/data/{name}", store.read_bytes(f"d/data/{name}"))
    numbers = torch.cat(load(remote, dataset, plan(dataset, 40)))
    assert torch.equal(numbers.sort().values, torch.arange(150))
    remote.delete("d")
