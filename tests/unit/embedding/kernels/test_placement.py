from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hvdspark.embedding.config import MAX_BOUNDED_IDS
from hvdspark.embedding.kernels import placement

BITS = 12
# 0: unbounded
SIZES = [0, 1, 2, 97, 2**31 - 1, 2**31 + 11, 2**32 + 15, MAX_BOUNDED_IDS]


def tables_of(sizes: list[int], id_bits: int = 58) -> placement.Tables:
    random = np.random.default_rng(1)
    limits = np.maximum(np.array(sizes), 1)
    return placement.Tables(
        id_bits,
        np.array(sizes, dtype=np.int64),
        random.integers(0, limits),
        random.integers(0, limits),
        random.integers(0, 2**64, len(sizes), dtype=np.uint64),
        np.where(np.arange(len(sizes)) % 3 == 2, 4095, -1),
    )


def keys_of(tables: placement.Tables, count: int, *, bounded: bool = False) -> NDArray[np.int64]:
    random = np.random.default_rng(2)
    numbers = random.choice(np.flatnonzero(tables.sizes > 0) if bounded else len(tables.sizes), count)
    limits = np.where(tables.sizes == 0, 2**tables.id_bits, tables.sizes)[numbers]
    ids = random.integers(0, limits)
    ids[::7] = limits[::7] - 1
    return ids | numbers << tables.id_bits


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_compiled_places_are_reference(count: int) -> None:
    tables = tables_of(SIZES)
    keys = keys_of(tables, count)
    found = placement.buckets_compiled(tables, keys, BITS)
    assert np.array_equal(found, placement.buckets_reference(tables, keys, BITS))
    bounded = keys_of(tables, count, bounded=True)
    found = placement.positions_compiled(tables, bounded)
    assert np.array_equal(found, placement.positions_reference(tables, bounded))
    assert not count or (found.min() >= 0 and (found < tables.sizes[bounded >> tables.id_bits]).all())


def test_positions_are_what_the_docstring_says() -> None:
    tables = tables_of([97, 2**32 + 15, MAX_BOUNDED_IDS])
    keys = keys_of(tables, 300)
    for key, found in zip(keys.tolist(), placement.positions_reference(tables, keys).tolist(), strict=True):
        table, id = key >> tables.id_bits, key & (2**tables.id_bits - 1)
        size = int(tables.sizes[table])
        assert found == (id * int(tables.factors[table]) + int(tables.shifts[table])) % size


@pytest.mark.parametrize("key", [3 << 58, -1])
def test_a_key_of_no_table_is_refused(key: int) -> None:
    tables = tables_of([97, 0, 5])
    keys = np.array([0, key])
    with pytest.raises(IndexError, match="none of 3 tables"):
        placement.buckets_compiled(tables, keys, BITS)
    with pytest.raises(IndexError, match="none of 3 tables"):
        placement.positions_compiled(tables, keys)


@given(st.integers(1, 9), st.data())
def test_compiled_route_is_reference(world_size: int, data: st.DataObject) -> None:
    owners = np.array(data.draw(st.lists(st.integers(0, world_size - 1), max_size=60)), dtype=np.int64)
    expected, found = placement.route_reference(owners, world_size), placement.route_compiled(owners, world_size)
    for mine, wanted in zip(found, expected, strict=True):
        assert (mine is None) == (wanted is None)
        assert mine is None or np.array_equal(mine, wanted)


@pytest.mark.parametrize("owner", [-1, 4])
def test_an_owner_that_is_no_rank_is_refused(owner: int) -> None:
    for route in (placement.route_compiled, placement.route_reference):
        with pytest.raises(IndexError, match="of 4 ranks"):
            route(np.array([0, owner, 3]), 4)


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_compiled_sightings_are_reference(count: int) -> None:
    random = np.random.default_rng(3)
    counts = random.integers(0, 3, 9000).astype(np.int32)
    slots = random.permutation(9000)[:count]
    expected = counts.copy()
    fresh = placement.meet_reference(expected, slots)
    assert np.array_equal(fresh, counts[slots] == 0)
    assert np.array_equal(placement.meet_compiled(counts, slots), fresh)
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize("slot", [-1, 5])
def test_a_slot_without_a_count_is_refused(slot: int) -> None:
    with pytest.raises(IndexError, match=rf"slots from {min(slot, 0)} to {max(slot, 0)} of 5"):
        placement.meet_compiled(np.zeros(5, dtype=np.int32), np.array([0, slot]))
