from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.config import MAX_BOUNDED_IDS, TableConfig
from hvdspark.embedding.ids.hashing import BUCKET_BITS, BUCKETS, bucket_range, salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.kernels.placement import hashed_buckets

sizes = st.one_of(st.none(), st.integers(1, 70), st.integers(1, MAX_BOUNDED_IDS))


def space(*num_embeddings: int | None) -> KeySpace:
    return KeySpace([TableConfig(f"t{i}", 4, num_embeddings=n) for i, n in enumerate(num_embeddings)])


@st.composite
def keys_of(draw: st.DrawFn) -> tuple[KeySpace, torch.Tensor]:
    """A group of tables and some keys of it, the ends of each table's range among them."""
    keys = space(*draw(st.lists(sizes, min_size=1, max_size=5)))
    parts = []
    for table in range(len(keys.bounded)):
        limit = keys.limit(table)
        ids = draw(st.lists(st.integers(0, limit - 1), max_size=20))
        parts.append(keys.fuse(table, torch.tensor([*ids, 0, limit - 1])))
    return keys, torch.cat(parts)


@given(keys_of())
def test_fuse_and_split(drawn: tuple[KeySpace, torch.Tensor]) -> None:
    keys, fused = drawn
    tables, ids = keys.tables_of(fused), keys.ids_of(fused)
    assert bool((fused >= 0).all())
    assert bool((ids >= 0).all())
    assert torch.equal(tables.unique(), torch.arange(len(keys.bounded)))
    assert all(bool((ids[tables == table] < keys.limit(table)).all()) for table in range(len(keys.bounded)))
    again = torch.cat([keys.fuse(table, ids[tables == table]) for table in range(len(keys.bounded))])
    assert torch.equal(again, fused)
    assert torch.equal(tables, tables.sort().values)


@given(keys_of())
def test_positions_are_a_permutation_that_can_be_undone(drawn: tuple[KeySpace, torch.Tensor]) -> None:
    keys, fused = drawn
    tables = keys.tables_of(fused)
    some = torch.from_numpy(keys.bounded)[tables]
    positions = keys.positions(fused[some])
    limits = torch.tensor([keys.limit(int(table)) for table in tables[some]])
    assert bool(((positions >= 0) & (positions < limits)).all())
    assert torch.equal(keys.keys_at(tables[some], positions), fused[some])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096, 5000])
def test_small_tables_are_permuted_whole(size: int) -> None:
    keys = space(size)
    positions = keys.positions(torch.arange(size))
    assert torch.equal(positions.sort().values, torch.arange(size))


@pytest.mark.parametrize("size", [(1 << 31) - 1, 1 << 31, (1 << 31) + 1, MAX_BOUNDED_IDS - 1, MAX_BOUNDED_IDS])
def test_large_products_do_not_overflow(size: int) -> None:
    keys = space(size)
    ids = torch.tensor([0, 1, 2, size // 2, size - 2, size - 1])
    positions = keys.positions(ids)
    factor = (int(positions[1]) - int(positions[0])) % size
    assert positions.tolist() == [(int(positions[0]) + factor * int(i)) % size for i in ids]
    assert torch.equal(keys.keys_at(torch.zeros(6, dtype=torch.int64), positions), ids)


@given(keys_of(), st.integers(1, 20))
def test_a_ranks_positions_are_those_of_its_buckets(drawn: tuple[KeySpace, torch.Tensor], world_size: int) -> None:
    keys, fused = drawn
    tables, ids = keys.tables_of(fused), keys.ids_of(fused)
    buckets, owners = keys.buckets(fused), keys.owners(fused, world_size)
    assert bool(((buckets >= 0) & (buckets < BUCKETS)).all())
    for table in range(len(keys.bounded)):
        chosen = tables == table
        if not keys.bounded[table]:
            assert np.array_equal(
                buckets[chosen],
                hashed_buckets(ids[chosen].numpy(), np.uint64(salt_of("placement", f"t{table}")), BUCKET_BITS),
            )
            continue
        positions = keys.positions(fused[chosen])
        stops = []
        for rank in range(world_size):
            first, stop = keys.position_range(table, *bucket_range(rank, world_size))
            assert torch.equal((first <= positions) & (positions < stop), owners[chosen] == rank)
            stops += [first, stop]
        assert stops[0] == 0
        assert stops[-1] == keys.limit(table)
        assert stops[1:-1:2] == stops[2:-1:2]


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 1000, 4096])
def test_bounded_ids_are_spread_evenly_whatever_their_pattern(stride: int) -> None:
    keys = space(1_000_003)
    ids = torch.arange(0, 1_000_003, stride)[:4096]
    counts = torch.bincount(keys.owners(ids, 8), minlength=8).float()
    assert (counts - counts.mean()).abs().max() <= 4 * counts.mean() ** 0.5


def test_few_hot_ids_are_spread_too() -> None:
    counts = torch.bincount(space(10**8).owners(torch.arange(64), 4), minlength=4)
    assert counts.min() >= 14


def test_home_bucket() -> None:
    tables = [TableConfig("a", 4, num_embeddings=100), TableConfig("b", 4), TableConfig("c", 4, num_embeddings=100)]
    keys = KeySpace(tables, [5, 4095, -1])
    ids = torch.arange(100)
    assert set(keys.buckets(keys.fuse(0, ids)).tolist()) == {5}
    assert set(keys.buckets(keys.fuse(1, ids)).tolist()) == {4095}
    assert len(keys.buckets(keys.fuse(2, ids)).unique()) > 50
    assert keys.position_range(0, 0, 5) == (0, 0)
    assert keys.position_range(0, 5, 6) == (0, 100)


def test_room_for_ids() -> None:
    assert [space(*[None] * count).id_bits for count in (1, 2, 3, 8, 26, 33)] == [62, 62, 61, 60, 58, 57]
    assert space(None).limit(0) == 1 << 62 >= 10**18
    assert space(None, 7).limit(1) == 7
    assert [space(*sizes).id_bits for sizes in ((1,), (2,), (8, 8), (9, 3), (7, None))] == [0, 1, 3, 4, 62]
