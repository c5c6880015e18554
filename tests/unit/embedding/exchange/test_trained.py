from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from hvdspark.embedding.config import Eviction, SparseOptimizer, TableConfig
from hvdspark.embedding.exchange.trained import GroupExchange, Lookup
from hvdspark.embedding.ids.bad_id import BadId, BadIdError
from hvdspark.embedding.ids.distinct import unique
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.embedding.rows.shard import TableShard

TABLE = TableConfig("t", 4, optimizer=SparseOptimizer("sgd", 1.0))

TWO_TABLES = {"bounded": 10**6, "unbounded": None}


class Shapes(LocalCollective):
    """Remembers the shape of everything that is sent, by name."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        self.shapes.setdefault(name, []).append(tuple(tensor.shape))
        return super().alltoall(tensor, splits, name)


def on_one_rank(table: TableConfig = TABLE) -> GroupExchange:
    return GroupExchange("g", TableShard([table]), table.dim, LocalCollective())


def with_gradient(lookup: Lookup, value: float = 1.0) -> Lookup:
    lookup.rows.grad = torch.full_like(lookup.rows, value)
    return lookup


def test_what_is_sent_keeps_its_shape_until_it_must_grow() -> None:
    collective = Shapes()
    exchange = GroupExchange("g", TableShard([TABLE]), 4, collective)
    for step, count in enumerate((10, 7, 0, 12, 10, 40)):
        lookup = exchange.look_up(unique(torch.arange(count)), train=True)
        exchange.update(exchange.reduce([with_gradient(lookup)]), step)
    assert set(collective.shapes) == {"g/ids", "g/rows", "g/gradients"}
    for name, shapes in collective.shapes.items():
        assert len(set(shapes[:5])) == 1, name
        assert shapes[5][0] >= 40
        assert shapes[0][1:] == (() if name == "g/ids" else (4,))


def test_no_ids_at_all() -> None:
    def body(collective: ThreadedCollective) -> tuple[int, ...]:
        shard = TableShard([TABLE], rank=collective.rank, world_size=collective.size)
        exchange = GroupExchange("g", shard, 4, collective)
        lookup = exchange.look_up(unique(torch.zeros(0, dtype=torch.int64)), train=True)
        exchange.update(exchange.reduce([lookup]), 1)
        return tuple(lookup.rows.shape)

    assert run_threaded(3, body) == [(0, 4)] * 3


def test_the_bad_id_of_the_lowest_rank_is_told_to_all() -> None:
    def body(collective: ThreadedCollective) -> tuple[BadId, dict[str, int]]:
        shard = TableShard([TABLE], rank=collective.rank, world_size=collective.size)
        exchange = GroupExchange("g", shard, 4, collective)
        bad = BadId(10 + collective.rank, -collective.rank, collective.rank) if collective.rank in (1, 3) else None
        with pytest.raises(BadIdError) as caught:
            exchange.look_up(unique(torch.arange(5)), train=True, bad=bad)
        assert shard.row_counts() == [0]
        return caught.value.bad, dict(collective.calls)

    assert run_threaded(4, body) == [(BadId(11, -1, 1), {"g/ids": 1})] * 4


def test_gradients_of_equal_keys_are_one_update() -> None:
    """Twice on rank 0, once on rank 1: SGD with rate 1 subtracts the sum."""

    def body(collective: ThreadedCollective) -> Tensor:
        shard = TableShard([TABLE], rank=collective.rank, world_size=collective.size)
        exchange = GroupExchange("g", shard, 4, collective)
        keys = torch.tensor([8, 8] if collective.rank == 0 else [8])
        before = exchange.look_up(unique(keys), train=True)
        exchange.update(exchange.reduce([with_gradient(before, len(keys))]), 1)
        return before.rows.detach() - exchange.look_up(unique(keys), train=False).rows

    for difference in run_threaded(2, body):
        torch.testing.assert_close(difference, torch.full((1, 4), 3.0))


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 9) | st.integers(0, 10**6 - 1), max_size=12), min_size=1, max_size=4))
def test_rows_and_gradients_find_their_way(ids_of_ranks: list[list[int]]) -> None:
    """Any ids on any ranks, of a bounded and of an unbounded table: each lookup gets the row of its own id, and each
    row is updated by as many gradients as there were lookups of it on all ranks."""
    tables = [TableConfig(name, 4, rows, optimizer=SparseOptimizer("sgd", 1.0)) for name, rows in TWO_TABLES.items()]
    counts = Counter(id for ids in ids_of_ranks for id in ids)

    def body(collective: ThreadedCollective) -> None:
        shard = TableShard(tables, rank=collective.rank, world_size=collective.size)
        exchange = GroupExchange("g", shard, 4, collective)
        ids = torch.tensor(ids_of_ranks[collective.rank], dtype=torch.int64)
        keys = torch.cat([shard.key_space.fuse(table, ids) for table in range(2)])
        first = torch.cat([initial_rows(ids, 4, 0, salt_of("table", table.name), table.init) for table in tables])
        lookup = exchange.look_up(unique(keys), train=True)
        assert torch.equal(lookup.rows[lookup.distinct.inverse], first)
        lookup.rows[lookup.distinct.inverse].sum().backward()
        exchange.update(exchange.reduce([lookup]), 1)
        again = exchange.look_up(unique(keys), train=False)
        moved = first - again.rows[again.distinct.inverse]
        expected = torch.tensor([counts[id] for id in ids.tolist()] * 2, dtype=torch.float32)
        torch.testing.assert_close(moved, expected.unsqueeze(1).expand(-1, 4), rtol=0, atol=1e-5)

    run_threaded(len(ids_of_ranks), body)


@pytest.mark.parametrize("size", [1, 2])
def test_an_update_between_forward_and_backward_is_not_undone(size: int) -> None:
    """The rows that the second pass read are old when its gradients come."""

    def body(collective: Collective) -> Tensor:
        exchange = GroupExchange("g", TableShard([TABLE], rank=collective.rank, world_size=size), 4, collective)
        keys = torch.arange(20)
        first, second = (exchange.look_up(unique(keys), train=True) for _ in range(2))
        for step, lookup in enumerate((first, second), 1):
            exchange.update(exchange.reduce([with_gradient(lookup)]), step)
        return first.rows.detach() - exchange.look_up(unique(keys), train=False).rows

    for difference in [body(LocalCollective())] if size == 1 else run_threaded(size, body):
        torch.testing.assert_close(difference, torch.full((20, 4), 2.0 * size))


def test_rows_leave_by_the_rules_of_eviction() -> None:
    exchange = on_one_rank(TableConfig("t", 4, eviction=Eviction(2, max_age_steps=1)))
    for step in (1, 2):
        exchange.update(
            exchange.reduce([with_gradient(exchange.look_up(unique(torch.tensor([step])), train=True))]), step
        )
    assert exchange.shard.row_counts() == [1]


def test_rows_are_copies_and_only_training_ones_collect_gradients() -> None:
    exchange = on_one_rank()
    lookup = exchange.look_up(unique(torch.tensor([3, 1, 3])), train=True)
    assert lookup.rows.requires_grad
    assert lookup.rows.is_leaf
    before = lookup.rows.detach().clone()
    exchange.look_up(unique(torch.arange(100)), train=True)
    exchange.update(exchange.reduce([with_gradient(lookup)]), 1)
    assert torch.equal(lookup.rows, before)
    assert not exchange.look_up(unique(torch.tensor([1])), train=False).rows.requires_grad
