from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.ids.distinct import all_distinct, route, sum_equal, unique, whole_table

KEYS = st.lists(st.integers(0, 5) | st.integers(0, 2**63 - 1), max_size=40)


def tensor(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def check_unique(values: list[int]) -> None:
    keys = tensor(values)
    distinct = unique(keys)
    assert distinct.keys.tolist() == list(dict.fromkeys(values))
    assert torch.equal(distinct.keys[distinct.inverse], keys)
    assert distinct.times.tolist() == [values.count(key) for key in distinct.keys.tolist()]


@given(KEYS)
def test_unique_keys_lead_back_to_every_lookup(values: list[int]) -> None:
    check_unique(values)


def test_keys_that_are_distinct_are_left_alone() -> None:
    distinct = all_distinct(tensor([9, 4, 2**62]))
    assert distinct.keys.tolist() == [9, 4, 2**62]
    assert distinct.inverse.tolist() == [0, 1, 2]
    assert distinct.times.tolist() == [1, 1, 1]


@given(st.integers(1, 9), st.data())
def test_a_route_leads_there_and_back(world_size: int, data: st.DataObject) -> None:
    owners = tensor(data.draw(st.lists(st.integers(0, world_size - 1), max_size=40)))
    way = route(owners, world_size)
    assert way.splits.dtype == torch.int32
    assert way.splits.tolist() == [owners.tolist().count(rank) for rank in range(world_size)]
    if way.order is None or way.place is None:
        assert way.order is way.place is None
        assert len(set(owners.tolist())) < 2
        return
    sent = owners[way.order]
    assert sent.tolist() == sorted(owners.tolist())
    assert torch.equal(sent[way.place], owners)
    for rank in range(world_size):  # as they came within one owner
        mine = way.order[sent == rank]
        assert torch.equal(mine, mine.sort().values)


def test_a_route_for_many_ranks() -> None:
    owners = torch.arange(40_000).flip(0) % 4096
    assert torch.equal(route(owners, 4096).splits, torch.bincount(owners).int())


@given(KEYS)
def test_sums_are_taken_in_the_order_of_arrival(values: list[int]) -> None:
    rows = torch.rand(len(values), 3) * 1e4 - 5e3
    distinct = unique(tensor(values))
    total = sum_equal(rows, distinct)
    assert total.shape == (len(set(values)), 3)
    for key, row in zip(distinct.keys.tolist(), total, strict=True):
        expected = torch.zeros(3)
        for value, mine in zip(values, rows, strict=True):
            if value == key:
                expected += mine
        assert torch.equal(row, expected)  # bit for bit


def test_sums_of_rows_that_lie_elsewhere() -> None:
    rows, distinct = torch.rand(20, 3), unique(tensor([3, 1, 3, 1]))
    places = tensor([7, 0, 19, 2])
    assert torch.equal(sum_equal(rows, distinct, places), sum_equal(rows[places], distinct))


@pytest.mark.parametrize("rows", [7, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_whole_table(count: int, rows: int) -> None:
    ids = torch.randint(0, rows, (count,))
    ids[:3] = rows - 1
    table = whole_table(ids, rows)
    assert torch.equal(table.keys, torch.arange(rows))
    values = torch.rand(count, 2)
    expected = torch.zeros(rows, 2)
    for id, value in zip(ids, values, strict=True):
        expected[id] += value
    assert torch.equal(sum_equal(values, table), expected)
    assert torch.equal(table.keys[table.inverse], ids)


@pytest.mark.parametrize("count", [0, 1])
def test_few_keys(count: int) -> None:
    distinct = unique(torch.full((count,), 7))
    assert distinct.keys.tolist() == [7] * count
    assert sum_equal(torch.ones(count, 2), distinct).tolist() == [[1.0, 1.0]] * count
