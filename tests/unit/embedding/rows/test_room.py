"""Tables never take more than they may: they raise, refuse or evict at the limit, and change nothing below it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.embedding.config import Admission, SparseOptimizer, TableConfig
from hvdspark.embedding.rows import room
from hvdspark.embedding.rows.budget import RowBudget, budget_of_process
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import ConfigurationError, MemoryBudgetError
from hvdspark.rank_limit import RankLimit

DIM = 8
LIMIT = 1 << 20
SETTING = "spark.executor.memoryOverhead"


def table(name: str = "u", at_limit: str = "raise", **options: Any) -> TableConfig:
    return TableConfig(name, DIM, at_limit=at_limit, **options)


def limited(*tables: TableConfig, limit: int = LIMIT, budget: RowBudget | None = None) -> TableShard:
    return TableShard(tables, seed=3, budget=budget or RowBudget(RankLimit(2 * limit, limit, SETTING)))


def train(shard: TableShard, raw: Tensor, step: int, number: int = 0) -> Tensor:
    """One step on ids of one table; their slots in it."""
    slots = shard.slots(shard.key_space.fuse(number, raw), insert=True)
    shard.update(slots, torch.full((len(raw), DIM), 0.5), step)
    shard.evict(step)
    return slots


def rows_of(shard: TableShard, raw: Tensor, number: int = 0) -> Tensor:
    return shard.gather(shard.slots(shard.key_space.fuse(number, raw), insert=False))


def ids_of(shard: TableShard, number: int = 0) -> set[int]:
    return set(shard.export(number)["ids"].tolist())


def some_ids(step: int, count: int = 500) -> Tensor:
    """New ones in each step, and 20 that come again in each."""
    return torch.cat([torch.arange(20), 1000 + torch.arange(count) + step * count])


def fill(shard: TableShard, steps: int, *others: TableShard) -> None:
    for step in range(1, steps):
        for one in (shard, *others):
            train(one, some_ids(step), step)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
@pytest.mark.parametrize("min_count", [1, 2])
def test_what_a_shard_is_said_to_take_is_never_less_than_what_it_takes(optimizer: str, min_count: int) -> None:
    options = {"optimizer": SparseOptimizer(optimizer), "admission": Admission(min_count)}
    unlimited = TableShard([table("u", "evict", **options), table("v", **options)], budget=RowBudget(None))
    memory = unlimited.memory
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 60):
        train(unlimited, torch.randint(4000, (300,), generator=generator).unique(), step, step % 2)
        said = room.bytes_for(memory, len(memory.index), len(memory.waiting))
        assert said >= memory.nbytes
        assert said <= 2.5 * memory.nbytes + (1 << 14), "and it is no wild guess"


def test_a_table_that_raises_says_all_there_is_to_know() -> None:
    shard = limited(table())
    with pytest.raises(MemoryBudgetError) as caught:
        fill(shard, 100)
    error = caught.value
    assert (error.table, error.limit, error.setting) == ("u", LIMIT, SETTING)
    assert error.rows == shard.row_counts()[0] > 1000
    assert LIMIT < error.bytes < 2 * LIMIT
    for text in ("table 'u'", f"{error.rows:,} rows", "on rank 0", f"raise {SETTING}", "more workers", "at_limit"):
        assert text in str(error)
    assert shard.bytes_used() <= LIMIT, "asked before anything grew"


def test_below_the_limit_nothing_changes() -> None:
    shards = [limited(table("u", at_limit), limit=1 << 24) for at_limit in ("raise", "refuse", "evict")]
    shards.append(TableShard([table()], seed=3, budget=RowBudget(None)))
    for step in range(1, 20):
        for shard in shards:
            train(shard, some_ids(step), step)
    first, *others = [shard.export(0) for shard in shards]
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_table_that_refuses_keeps_its_rows_and_takes_no_new_ones(backwards: bool) -> None:
    shard = limited(table("u", "refuse"))
    for step in range(1, 40):
        raw = some_ids(step)
        train(shard, raw.flip(0) if backwards else raw, step)
        assert shard.bytes_used() <= LIMIT
    known = ids_of(shard)
    assert set(range(20)) <= known, "who came first stays"
    assert known == set(range(20)) | set(range(1500, 1500 + len(known) - 20)), "then by ascending id, in any order"
    before = rows_of(shard, torch.arange(20))
    slots = train(shard, torch.tensor([3, 999_999]), 40)
    assert int(slots[1]) == -1
    assert torch.equal(rows_of(shard, torch.tensor([999_999])), torch.zeros(1, DIM)), "as before admission"
    after = rows_of(shard, torch.arange(20))
    assert not torch.equal(after[3], before[3]), "rows that are there are trained on"
    assert torch.equal(after[4], before[4])


def test_a_table_that_evicts_gives_up_what_was_updated_longest_ago() -> None:
    shard = limited(table("u", "evict"))
    for step in range(1, 60):
        train(shard, some_ids(step), step)
        assert shard.bytes_used() <= LIMIT
        known = ids_of(shard)
        assert set(range(20)) <= known, "what comes in each step stays"
        assert set(some_ids(step).tolist()) <= known, "there is room for what comes"
    oldest = min(number for number in known if number >= 1000)
    assert known == set(range(20)) | set(range(oldest, 1000 + 60 * 500)), "the oldest went, and no other"
    assert len(known) > 2000, "most of the memory is used"


def test_among_rows_of_one_step_rare_ones_and_then_small_ids_go_first() -> None:
    shard = limited(table("u", "evict"), limit=70_000)
    often = torch.arange(100, 200)
    for step in (1, 2, 3):
        train(shard, often, step)
    train(shard, torch.cat([often, torch.arange(1000)[200:]]), 4)
    kept = ids_of(shard)
    dropped = set(range(100, 1000)) - kept
    assert dropped, "the step filled the memory"
    assert set(often.tolist()) <= kept
    refused = {int(number) for number in dropped if number > max(kept)}
    assert dropped - refused == set(range(200, 200 + len(dropped - refused)))


def test_a_run_that_is_resumed_evicts_the_same_rows() -> None:
    whole, first = limited(table("u", "evict")), limited(table("u", "evict"))
    for step in range(1, 31):
        train(whole, some_ids(step), step)
        train(first, some_ids(step), step)
    second = limited(table("u", "evict"))
    second.load(0, first.export(0))
    second.resume(30)
    for step in range(31, 60):
        train(whole, some_ids(step), step)
        train(second, some_ids(step), step)
    expected, found = whole.export(0), second.export(0)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_what_each_table_of_a_group_does_is_its_own() -> None:
    shard = limited(table("old", "evict"), table("kept", "refuse"))
    train(shard, torch.arange(1000), 1, number=1)
    for step in range(2, 40):
        train(shard, some_ids(step), step)
    assert ids_of(shard, 1) == set(range(1000)), "of a table that refuses no row goes"
    assert shard.bytes_used() <= LIMIT


def test_all_groups_share_one_limit_and_what_is_gone_takes_nothing() -> None:
    budget = RowBudget(RankLimit(2 * LIMIT, LIMIT, SETTING))
    one, other = limited(table("one"), budget=budget), limited(table("other"), budget=budget)
    with pytest.raises(MemoryBudgetError, match="table '(one|other)'"):
        fill(one, 100, other)
    assert one.bytes_used() + other.bytes_used() <= LIMIT
    rows = one.row_counts()[0]
    del other
    gc.collect()
    train(one, torch.arange(10**6, 10**6 + rows // 2), 100)


def test_ids_that_wait_are_counted_too() -> None:
    rare = Admission(min_count=3)
    with pytest.raises(MemoryBudgetError, match="'u'"):
        fill(limited(table("u", admission=rare)), 200)
    for at_limit in ("refuse", "evict"):
        shard = limited(table("u", at_limit, admission=rare))
        for step in range(1, 200):
            train(shard, some_ids(step), step)
            assert shard.bytes_used() <= LIMIT
        assert ids_of(shard) >= set(range(20)), "what comes often has its row"


def test_bounded_tables_are_refused_before_they_take_anything() -> None:
    limited(TableConfig("b", DIM, num_embeddings=1000))
    with pytest.raises(MemoryBudgetError, match=r"'b' with 1,000,000 rows") as caught:
        limited(TableConfig("b", DIM, num_embeddings=10**6))
    assert "at_limit" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="unbounded"):
        table("b", "evict", num_embeddings=10)
    with pytest.raises(ConfigurationError, match="at_limit"):
        table("b", "explode")


def test_rows_of_files_have_to_find_room_as_well() -> None:
    large = TableShard([table()], budget=RowBudget(None))
    train(large, torch.arange(50_000), 1)
    train(large, torch.arange(40_000, 50_000), 2)
    tensors = large.export(0)
    with pytest.raises(MemoryBudgetError, match="'u'"):
        limited(table()).load(0, tensors)
    small = limited(table("u", "evict"))
    small.load(
        0,
        {name: values[45_000:] for name, values in tensors.items() if not name.startswith("waiting")}
        | {name: values for name, values in tensors.items() if name.startswith("waiting")},
    )
    assert small.bytes_used() <= LIMIT
    assert small.row_counts()[0] == 5000


def test_the_limit_of_the_process_is_that_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    budget_of_process.cache_clear()
    try:
        assert budget_of_process().limit >= 1 << 60, "none"
        budget_of_process.cache_clear()
        for name, value in RankLimit(2 * LIMIT, LIMIT, SETTING).environment().items():
            monkeypatch.setenv(name, value)
        assert (budget_of_process().limit, budget_of_process().setting) == (LIMIT, SETTING)
        assert TableShard([table()]).memory.budget is budget_of_process()
    finally:
        budget_of_process.cache_clear()
