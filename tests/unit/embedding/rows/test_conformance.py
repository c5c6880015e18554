"""What every `RowStore` has to do, bit for bit what a dict of rows does. A new implementation joins STORES."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hvdspark.embedding.config import OPTIMIZERS, Admission, Eviction, SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.embedding.rows.protocol import Part, RowStore
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import CheckpointError
from tests.unit.embedding.rows.dict_store import DictStore

# Made with (tables, rank=, world_size=, seed=, home_buckets=).
STORES: dict[str, Callable[..., RowStore]] = {"memory of the host": TableShard}

DIM, SEED, STEPS = 4, 3, 12
TABLES = [
    TableConfig("bounded", DIM, num_embeddings=500),
    TableConfig("frequent", DIM, admission=Admission(3), eviction=Eviction(every_steps=3, min_count=2)),
    TableConfig("at home", DIM, num_embeddings=50, placement="table"),
    TableConfig("free", DIM),
    TableConfig("recent", DIM, eviction=Eviction(every_steps=4, max_age_steps=3)),
    TableConfig("patient", DIM, admission=Admission(2, forget_after_steps=5)),
]
HOMES = [-1, -1, 2048, -1, -1, -1]
KINDS = {
    **{name: (SparseOptimizer(name, 0.1, initial_accumulator=0.1), "float32") for name in OPTIMIZERS},
    "two optimizers": (
        SparseOptimizer("adam", last=SparseOptimizer("ftrl", initial_accumulator=0.1, l1=0.01)),
        "float32",
    ),
    "clipped": (SparseOptimizer("adagrad", clip_norm=0.5, l2=0.01), "float32"),
    "bfloat16": (SparseOptimizer("rowwise_adagrad"), "bfloat16"),
    "float16": (SparseOptimizer("sgd", 0.1), "float16"),
}


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest) -> Callable[..., RowStore]:
    return STORES[request.param]


def of_kind(kind: str) -> list[TableConfig]:
    optimizer, dtype = KINDS[kind]
    return [replace(table, optimizer=optimizer, dtype=dtype) for table in TABLES]


def pair(make: Callable[..., RowStore], tables: Sequence[TableConfig], rank: int, world_size: int) -> list[RowStore]:
    """The store and its reference."""
    options = {"rank": rank, "world_size": world_size, "seed": SEED, "home_buckets": HOMES}
    return [made(tables, **options) for made in (make, DictStore)]


def keys_of(store: RowStore, step: int) -> Tensor:
    """Unique keys of this store in no order: few ids come often, many once."""
    random = np.random.default_rng([7, step])
    keys = []
    for number, table in enumerate(store.tables):
        limit = table.num_embeddings or 10**12
        often = np.random.default_rng([8, number]).integers(limit, size=12)
        ids = np.append(random.choice(often, 8), random.integers(limit, size=6))
        keys.append(store.key_space.fuse(number, torch.from_numpy(ids)))
    mixed = torch.cat(keys).unique()
    buckets = store.key_space.buckets(mixed)
    mixed = mixed[(buckets >= store.buckets[0]) & (buckets < store.buckets[1])]
    return mixed[torch.from_numpy(random.permutation(len(mixed)))]


def train(stores: Sequence[RowStore], steps: Sequence[int]) -> None:
    """The same steps on each; everything that a call gives is compared."""
    for step in steps:
        keys = keys_of(stores[0], step)
        random = torch.Generator().manual_seed(step)
        gradients = torch.randn(len(keys), DIM, generator=random)
        times = torch.randint(1, 4, (len(keys),), generator=random) if step % 2 else None
        seen = []
        for store in stores:
            known = store.gather(store.slots(keys, insert=False))
            slots = store.slots(keys, insert=True, times=times)
            rows = store.gather(slots, met=True)
            store.update(slots, gradients.clone(), step, 1.0 if step % 4 else 0.5)
            after = store.gather(slots)
            seen.append((known, slots >= 0, rows, after, torch.tensor(store.evict(step))))
        for mine, expected in zip(*seen, strict=True):
            assert_same(mine, expected)
        assert stores[0].row_counts() == stores[1].row_counts()


def assert_same(mine: Tensor, expected: Tensor) -> None:
    assert (mine.dtype, mine.shape) == (expected.dtype, expected.shape)
    assert torch.equal(mine, expected)


def tensors_of(part: Part, table: int, *, state: bool = True) -> dict[str, Tensor]:
    return {column.name: torch.cat(list(column.blocks())) for column in part.columns(table, state=state)}


def assert_same_rows(stores: Sequence[RowStore], cuts: Sequence[int] = ()) -> None:
    edges = [0, *cuts, BUCKETS]
    for mine, expected in zip(*(store.parts(list(itertools.pairwise(edges))) for store in stores), strict=True):
        assert (mine.first, mine.stop) == (expected.first, expected.stop)
        for place in range(len(stores[0].tables)):
            assert mine.ids[place].tolist() == expected.ids[place].tolist()
            assert len(mine.waiting[place]) == len(expected.waiting[place])
            for state in (True, False):
                columns, wanted = (tensors_of(part, place, state=state) for part in (mine, expected))
                assert columns.keys() == wanted.keys()
                for name, tensor in columns.items():
                    assert_same(tensor, wanted[name])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_dict(make: Callable[..., RowStore], kind: str) -> None:
    stores = pair(make, of_kind(kind), 0, 1)
    train(stores, range(1, STEPS + 1))
    assert all(stores[0].row_counts())
    assert_same_rows(stores, [64, 2000, 2048, 2049])


@pytest.mark.parametrize("kind", ["adam", "ftrl", "two optimizers", "bfloat16", "sgd"])
def test_changes_are_those_of_a_dict_that_compares_every_row(make: Callable[..., RowStore], kind: str) -> None:
    stores = pair(make, of_kind(kind), 0, 1)
    for watched in (0, 4, 8, STEPS):
        for store in stores:
            store.watch()
        train(stores, range(watched + 1, watched + 4))
        # Met, and not updated: their counts change, or they are new.
        met = keys_of(stores[0], watched + 20)
        for store in stores:
            store.slots(met, insert=True)
        assert stores[0].rows_changed() == stores[1].rows_changed()
        edges = [0, 64, 2048, BUCKETS]
        for mine, expected in zip(
            *(store.parts(list(itertools.pairwise(edges)), changed=True) for store in stores), strict=True
        ):
            for place in range(len(stores[0].tables)):
                assert mine.dropped[place].tolist() == expected.dropped[place].tolist()
                columns, wanted = (tensors_of(part, place) for part in (mine, expected))
                assert columns.keys() == wanted.keys()
                for name, tensor in columns.items():
                    assert_same(tensor, wanted[name])


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_has_its_buckets_alone(make: Callable[..., RowStore], rank: int) -> None:
    stores = pair(make, of_kind("adam"), rank, 3)
    train(stores, range(1, STEPS + 1))
    assert_same_rows(stores)
    whole, none = stores[0].parts([stores[0].buckets, (BUCKETS - 1, BUCKETS) if rank == 0 else (0, 1)])
    assert sum(map(len, whole.ids)) == sum(stores[0].row_counts())
    assert sum(map(len, (*none.ids, *none.waiting))) == 0


@pytest.mark.parametrize("kind", ["ftrl", "bfloat16"])
def test_rows_go_on_at_another_world_size(make: Callable[..., RowStore], kind: str) -> None:
    tables = of_kind(kind)
    pairs = [pair(make, tables, rank, 2) for rank in range(2)]
    for stores in pairs:
        train(stores, [1, 2, 3])
    saved = [store for store, _ in pairs]
    for rank in range(3):
        stores = pair(make, tables, rank, 3)
        for store in stores:
            for old, place in itertools.product(saved, range(len(tables))):
                (part,) = old.parts([old.buckets])
                store.load(place, tensors_of(part, place))
            store.resume(3)
        assert_same_rows(stores)
        train(stores, range(4, 9))
        assert_same_rows(stores)


def test_after_the_first_pass_nothing_is_admitted(make: Callable[..., RowStore]) -> None:
    stores = pair(make, of_kind("sgd"), 0, 1)
    assert all(store.counts_occurrences for store in stores)
    train(stores, [1, 2])
    for store in stores:
        store.count_occurrences(False)
        assert not store.counts_occurrences
    train(stores, [3, 4, 5])
    assert_same_rows(stores)


def test_no_keys_at_all(make: Callable[..., RowStore]) -> None:
    for store in pair(make, of_kind("adagrad"), 0, 1):
        none = torch.zeros(0, dtype=torch.int64)
        assert store.slots(none, insert=True).shape == (0,)
        assert store.gather(none).shape == (0, DIM)
        store.update(none, torch.zeros(0, DIM), 1)
        assert store.evict(12) == 0
        assert store.row_counts() == [0] * len(TABLES)
        assert store.not_finite() is None


@pytest.mark.parametrize("table", [0, 3])
def test_a_table_that_is_not_finite_is_named(make: Callable[..., RowStore], table: int) -> None:
    for store in pair(make, of_kind("sgd"), 0, 1):
        keys = store.key_space.fuse(table, torch.arange(40))
        slots = store.slots(keys, insert=True)
        gradients = torch.zeros(40, DIM)
        store.update(slots, gradients, 1)
        assert store.not_finite() is None
        gradients[17, 1] = torch.inf
        store.update(slots, gradients, 2)
        assert store.not_finite() == TABLES[table].name


def test_a_key_of_another_rank_is_refused(make: Callable[..., RowStore]) -> None:
    for store in pair(make, of_kind("sgd"), 0, 2):
        with pytest.raises(IndexError, match="'at home' is not on this rank"):
            store.slots(store.key_space.fuse(2, torch.arange(3)), insert=True)


def test_what_is_no_row_of_the_table_is_not_loaded(make: Callable[..., RowStore]) -> None:
    store, reference = pair(make, of_kind("adam"), 0, 1)
    train([store, reference], [1, 2])
    (part,) = reference.parts([(0, BUCKETS)])
    good = tensors_of(part, 0)
    for bad in ({"ids": good["ids"] + 500}, {"rows": good["rows"][:, 1:]}, {"counts": good["counts"].long()}):
        with pytest.raises(CheckpointError, match="table 'bounded'"):
            make(of_kind("adam"), home_buckets=HOMES).load(0, {**good, **bad})
