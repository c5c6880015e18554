from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hvdspark.embedding.config import OPTIMIZERS, Admission, Eviction, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.kernels import optimizers
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import CheckpointError, ConfigurationError

SEED = 11
DIM = 6


def bounded(name: str = "b", n: int = 1000, **options: object) -> TableConfig:
    return TableConfig(name, DIM, num_embeddings=n, **options)  # type: ignore[arg-type]


def unbounded(name: str = "u", **options: object) -> TableConfig:
    return TableConfig(name, DIM, **options)  # type: ignore[arg-type]


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def train(shard: TableShard, keys: Tensor, step: int, gradients: Tensor | None = None) -> Tensor:
    """One step on unique keys; returns the rows before the update."""
    slots = shard.slots(keys, insert=True)
    rows = shard.gather(slots)
    shard.update(slots, torch.ones(len(keys), DIM) if gradients is None else gradients, step)
    shard.evict(step)
    return rows


def look_up(shard: TableShard, keys: Tensor) -> Tensor:
    return shard.gather(shard.slots(keys, insert=False))


def expected_rows(table: TableConfig, raw: Tensor) -> Tensor:
    return initial_rows(raw, DIM, SEED, salt_of("table", table.name), table.init)


@pytest.fixture(params=["bounded", "unbounded", "mixed"])
def tables(request: pytest.FixtureRequest) -> list[TableConfig]:
    kinds = {
        "bounded": [bounded(), bounded("c", 77)],
        "unbounded": [unbounded(), unbounded("v")],
        "mixed": [bounded(), unbounded(), bounded("c", 77)],
    }
    return kinds[request.param]


def all_keys(shard: TableShard, n: int = 60, seed: int = 0) -> Tensor:
    """Shuffled keys of all tables of the group."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for number, table in enumerate(shard.tables):
        limit = table.num_embeddings or 10**15
        raw = torch.randint(limit, (n,), generator=generator).unique()
        parts.append(shard.key_space.fuse(number, raw))
    keys = torch.cat(parts)
    return keys[torch.randperm(len(keys), generator=generator)]


def test_new_rows_are_the_initial_rows(tables: list[TableConfig]) -> None:
    shard = TableShard(tables, seed=SEED)
    keys = all_keys(shard)
    rows = train(shard, keys, 1)
    numbers, raw = shard.key_space.tables_of(keys), shard.key_space.ids_of(keys)
    for number, table in enumerate(tables):
        chosen = numbers == number
        assert torch.equal(rows[chosen], expected_rows(table, raw[chosen]))
    assert not torch.equal(look_up(shard, keys), rows)  # and were then updated


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_update_is_the_optimizer_once_for_each_row(tables: list[TableConfig], name: str) -> None:
    optimizer = SparseOptimizer(name, learning_rate=0.1, initial_accumulator=0.1)
    tables = [replace(table, optimizer=optimizer) for table in tables]
    shard = TableShard(tables, seed=SEED)
    keys = all_keys(shard)
    rows = look_up(shard, keys) if all(table.num_embeddings for table in tables) else None
    first = train(shard, keys[:0], 0)
    assert first.shape == (0, DIM)
    for step in range(1, 5):
        generator = torch.Generator().manual_seed(step)
        chosen = torch.randperm(len(keys), generator=generator)[: len(keys) // 2]
        gradients = torch.randn(len(chosen), DIM, generator=generator)
        before = shard.gather(shard.slots(keys, insert=step == 1))
        if step == 1:
            rows, state = before.clone(), optimizers.initial_state(optimizer, before)
        slots = shard.slots(keys[chosen], insert=True)
        shard.update(slots, gradients.clone(), step)
        assert rows is not None
        part = {key: value[chosen] for key, value in state.items()}
        updated = rows[chosen]
        optimizers.update(optimizer, updated, part, gradients.clone())
        rows[chosen] = updated
        for key, value in part.items():
            state[key][chosen] = value
        assert torch.equal(look_up(shard, keys), rows)


def test_evaluation_changes_nothing(tables: list[TableConfig]) -> None:
    shard = TableShard(tables, seed=SEED)
    keys = all_keys(shard)
    before = look_up(shard, keys)
    assert sum(shard.row_counts()) == 0
    numbers, raw = shard.key_space.tables_of(keys), shard.key_space.ids_of(keys)
    for number, table in enumerate(tables):
        chosen = numbers == number
        wanted = expected_rows(table, raw[chosen]) if table.num_embeddings else torch.zeros(int(chosen.sum()), DIM)
        assert torch.equal(before[chosen], wanted)
    train(shard, keys[::2], 1)
    counts = shard.row_counts()
    look_up(shard, keys)
    assert shard.row_counts() == counts
    assert sum(counts) == len(keys[::2])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_rows_and_get_the_same_bits(tables: list[TableConfig], world_size: int) -> None:
    whole = TableShard(tables, seed=SEED)
    shards = [TableShard(tables, rank=rank, world_size=world_size, seed=SEED) for rank in range(world_size)]
    keys = all_keys(whole)
    owners = whole.key_space.owners(keys, world_size)
    for step in (1, 2):
        train(whole, keys, step)
        for rank, shard in enumerate(shards):
            train(shard, keys[owners == rank], step)
    for rank, shard in enumerate(shards):
        assert torch.equal(look_up(shard, keys[owners == rank]), look_up(whole, keys[owners == rank]))
    assert np.sum([shard.row_counts() for shard in shards], axis=0).tolist() == whole.row_counts()


def test_a_key_of_another_rank_is_refused() -> None:
    table = bounded()
    shard = TableShard([table], rank=0, world_size=2)
    foreign = shard.key_space.owners(torch.arange(1000), 2) == 1
    with pytest.raises(IndexError, match="table 'b' is not on this rank"):
        shard.slots(torch.arange(1000)[foreign], insert=True)


def test_a_table_at_home_is_whole_on_one_rank() -> None:
    tables = [bounded("spread"), bounded("whole", 50)]
    shards = [TableShard(tables, rank=rank, world_size=4, home_buckets=[-1, 2048]) for rank in range(4)]
    keys = shards[0].key_space.fuse(1, torch.arange(50))
    assert set(shards[0].key_space.owners(keys, 4).tolist()) == {2}
    train(shards[2], keys, 1)
    assert [len(shard.export(1)["ids"]) for shard in shards] == [0, 0, 50, 0]
    before, home = shards[2].parts([(0, 2048), (2048, 2049)])
    assert (len(before.ids[1]), len(home.ids[1])) == (0, 50)


def test_unbounded_grows_with_touched_rows_only() -> None:
    shard = TableShard([unbounded()], seed=SEED)
    keys = torch.from_numpy(np.random.default_rng(0).choice(10**18, 40_000)).unique()
    for start in range(0, len(keys), 5_000):
        train(shard, keys[start : start + 5_000], 1 + start)
    assert shard.row_counts() == [len(keys)]
    needed = len(keys) * (DIM * 4 + 4 + 8 + 8 + 4 / 0.3)
    assert shard.bytes_used() <= 1.15 * needed
    assert torch.equal(shard.export(0)["ids"].sort().values, keys)
    # growing moved no row
    rows = look_up(shard, keys[:5_000])
    fresh = TableShard([unbounded()], seed=SEED)
    train(fresh, keys[:5_000], 1)
    assert torch.equal(look_up(fresh, keys[:5_000]), rows)


def test_admission_at_the_nth_sighting() -> None:
    table = unbounded(admission=Admission(min_count=3))
    shard = TableShard([table], seed=SEED)
    for step in (1, 2):
        assert shard.slots(ids(5, 9), insert=True).tolist() == [-1, -1]
        assert shard.slots(ids(5, 9), insert=False).tolist() == [-1, -1]
        shard.update(ids(-1, -1), torch.ones(2, DIM), step)
    assert look_up(shard, ids(5)).abs().sum() == 0
    assert shard.slots(ids(5), insert=True).tolist() == [0]
    assert torch.equal(look_up(shard, ids(5)), expected_rows(table, ids(5)))
    assert shard.export(0)["counts"].tolist() == [3]
    assert shard.export(0)["waiting_ids"].tolist() == [9]
    assert shard.export(0)["waiting_counts"].tolist() == [2]
    other = TableShard([table], seed=SEED)
    other.load(0, shard.export(0))
    assert other.slots(ids(5, 9), insert=True).tolist() == [0, 1]


def test_tables_with_and_without_admission_share_a_shard() -> None:
    shard = TableShard([unbounded("a", admission=Admission(2)), unbounded("b")])
    keys = torch.cat([shard.key_space.fuse(0, ids(1, 2)), shard.key_space.fuse(1, ids(1, 2))])
    assert shard.slots(keys, insert=True).tolist() == [-1, -1, 0, 1]
    assert shard.slots(keys, insert=True).tolist() == [2, 3, 0, 1]
    assert shard.export(0)["counts"].tolist() == [2, 2]


def test_eviction_by_age() -> None:
    table = unbounded(eviction=Eviction(every_steps=10, max_age_steps=10))
    shard = TableShard([table, unbounded("kept")], seed=SEED)
    keys = torch.arange(100)
    train(shard, torch.cat([keys, shard.key_space.fuse(1, keys)]), 1)
    train(shard, keys[40:60], 11)
    rows = look_up(shard, keys[40:60])
    kept = look_up(shard, shard.key_space.fuse(1, keys))
    assert shard.evict(19) == 0  # not a multiple of every_steps
    assert shard.evict(20) == 80
    assert shard.row_counts() == [20, 100]
    assert torch.equal(look_up(shard, keys[40:60]), rows)
    assert torch.equal(look_up(shard, shard.key_space.fuse(1, keys)), kept)
    assert look_up(shard, keys[:40]).abs().sum() == 0
    # one that comes back begins anew
    assert torch.equal(train(shard, keys[:5], 21), expected_rows(table, keys[:5]))


def test_the_age_of_a_row() -> None:
    """It is evicted at exactly max_age_steps, counted from its last update or, without any, from when it was met."""
    shard = TableShard([unbounded(eviction=Eviction(every_steps=10, max_age_steps=10))], seed=SEED)
    train(shard, ids(1, 2), 10)
    train(shard, ids(2), 11)
    shard.slots(ids(3), insert=True)
    assert shard.evict(20) == 1
    assert shard.export(0)["ids"].sort().values.tolist() == [2, 3]
    assert sorted(shard.export(0)["last_step"].tolist()) == [11, 11]


def test_eviction_leaves_bounded_tables_alone() -> None:
    shard = TableShard([bounded(), unbounded(eviction=Eviction(every_steps=4, max_age_steps=3))], seed=SEED)
    keys = all_keys(shard)
    train(shard, keys, 1)
    of_unbounded = shard.key_space.tables_of(keys) == 1
    kept = keys[of_unbounded][::2]
    train(shard, kept, 2)
    left = torch.cat([keys[~of_unbounded], kept])
    rows = look_up(shard, left)
    assert shard.evict(4) == int(of_unbounded.sum()) - len(kept)
    assert shard.row_counts() == [int((~of_unbounded).sum()), len(kept)]
    assert torch.equal(look_up(shard, left), rows)


def test_eviction_by_frequency_halves_the_counts() -> None:
    shard = TableShard([unbounded(eviction=Eviction(every_steps=4, min_count=2))], seed=SEED)
    for step in (1, 2, 3):
        train(shard, ids(1, step + 10), step)
    train(shard, ids(1), 4)
    assert shard.export(0)["ids"].tolist() == [1]
    assert shard.export(0)["counts"].tolist() == [2]
    shard.evict(8)
    assert shard.export(0)["counts"].tolist() == [1]
    assert shard.evict(12) == 1
    assert shard.row_counts() == [0]


def test_waiting_ids_of_a_table_do_not_age_by_the_eviction_of_another() -> None:
    often = unbounded("often", eviction=Eviction(every_steps=1, max_age_steps=100))
    seldom = unbounded("seldom", admission=Admission(3), eviction=Eviction(every_steps=4, max_age_steps=100))
    for tables in ([seldom], [often, seldom]):
        shard, place = TableShard(tables, seed=SEED), len(tables) - 1
        shard.slots(shard.key_space.fuse(place, torch.tensor([7])), insert=True)
        for step in range(1, 8):
            shard.evict(step)
        assert shard.export(place)["waiting_ids"].tolist() == [7]  # met before the pass of step 4
        shard.evict(8)
        assert shard.export(place)["waiting_ids"].tolist() == []


def test_waiting_ids_are_forgotten_when_eviction_passes_twice_without_them() -> None:
    table = unbounded(admission=Admission(3), eviction=Eviction(every_steps=5, max_age_steps=100))
    shard = TableShard([table, unbounded("other", admission=Admission(3))])
    other = shard.key_space.fuse(1, ids(7))
    shard.slots(torch.cat([ids(1, 2), other]), insert=True)
    shard.evict(5)
    shard.slots(ids(2), insert=True)
    shard.evict(10)
    assert shard.export(0)["waiting_ids"].tolist() == [2]
    assert shard.export(0)["waiting_counts"].tolist() == [2]
    assert shard.export(1)["waiting_ids"].tolist() == [7]  # that table evicts nothing


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_at_four_loaded_at_another_world_size(tables: list[TableConfig], world_size: int, name: str) -> None:
    optimizer = SparseOptimizer(name, initial_accumulator=0.1)
    tables = [replace(table, optimizer=optimizer) for table in tables]
    saved = [TableShard(tables, rank=rank, world_size=4, seed=SEED) for rank in range(4)]
    keys = all_keys(saved[0])
    owners = saved[0].key_space.owners(keys, 4)
    for step in (1, 2, 3):
        for rank, shard in enumerate(saved):
            train(shard, keys[owners == rank][step:], step)
    loaded = [TableShard(tables, rank=rank, world_size=world_size, seed=SEED) for rank in range(world_size)]
    for shard, old, table in every(loaded, saved, range(len(tables))):
        shard.load(table, old.export(table))
    for table in range(len(tables)):
        assert_same_rows([shard.export(table) for shard in saved], [shard.export(table) for shard in loaded])
    # one more step equals the one that was never interrupted
    new_owners = saved[0].key_space.owners(keys, world_size)
    for rank, shard in enumerate(saved):
        train(shard, keys[owners == rank], 4)
    for rank, shard in enumerate(loaded):
        train(shard, keys[new_owners == rank], 4)
    for table in range(len(tables)):
        assert_same_rows([shard.export(table) for shard in saved], [shard.export(table) for shard in loaded])


def every(
    loaded: list[TableShard], saved: list[TableShard], tables: range
) -> Iterator[tuple[TableShard, TableShard, int]]:
    return ((new, old, table) for new in loaded for old in saved for table in tables)


def assert_same_rows(left: list[dict[str, Tensor]], right: list[dict[str, Tensor]]) -> None:
    assert left[0].keys() == right[0].keys()
    sides = []
    for parts in (left, right):
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = whole["ids"].argsort()
        assert len(whole["ids"].unique()) == len(order)
        sides.append({name: tensor[order] for name, tensor in whole.items() if not name.startswith("waiting")})
    assert len(sides[0]["ids"])
    for name in sides[0]:
        assert torch.equal(sides[0][name], sides[1][name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_rows_keep_small_updates_on_average(tables: list[TableConfig], dtype: str) -> None:
    options = {"dtype": dtype, "optimizer": SparseOptimizer("sgd", learning_rate=1.0)}
    tables = [replace(table, init=Initialization("uniform", 1.0), **options) for table in tables]  # type: ignore[arg-type]
    shard = TableShard(tables, seed=SEED)
    keys = all_keys(shard, 70)
    first = train(shard, keys, 0, torch.zeros(len(keys), DIM))
    assert torch.equal(look_up(shard, keys), first)  # nothing to round: not a bit changes
    for step in range(1, 101):
        train(shard, keys, step, torch.full((len(keys), DIM), 1e-4))
    moved = (first - look_up(shard, keys)).mean()
    assert moved.item() == pytest.approx(0.01, rel=0.1)
    exported = shard.export(0)
    assert exported["rows"].dtype == tables[0].torch_dtype
    other = TableShard(tables, seed=SEED)
    other.load(0, exported)
    mine = keys[shard.key_space.tables_of(keys) == 0]
    assert torch.equal(look_up(other, mine), look_up(shard, mine))


def test_a_group_is_of_one_kind() -> None:
    with pytest.raises(ConfigurationError, match=r"tables of one group differ: 'c'.*those of 'b'"):
        TableShard([bounded(), TableConfig("c", DIM + 1, num_embeddings=3)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("state.accumulator"), "tensor missing: 'state.accumulator'"),
        (lambda t: t.update(rows=t["rows"][:, 1:]), "tensor rows has shape"),
        (lambda t: t.update(counts=t["counts"].long()), "tensor counts has shape and dtype"),
        (lambda t: t.update(ids=t["ids"] + 1000), "id outside the table"),
        (lambda t: t.update(ids=-t["ids"] - 1), "id outside the table: -"),
    ],
)
def test_what_cannot_be_loaded_is_refused(damage: object, message: str) -> None:
    shard = TableShard([bounded()])
    train(shard, torch.arange(10), 1)
    tensors = shard.export(0)
    damage(tensors)  # type: ignore[operator]
    other = TableShard([bounded()])
    with pytest.raises(CheckpointError, match=message):
        other.load(0, tensors)
    assert other.row_counts() == [0]
