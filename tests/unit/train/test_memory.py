"""The plan of a module's sharded tables, and what is said of it."""

from __future__ import annotations

import logging

import pytest
from torch import nn

from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.errors import ConfigurationError
from hvdspark.events import FitStarted
from hvdspark.launch import MemoryBudget
from hvdspark.train.memory import MemoryReport, plan_tables


def tables(*rows: int) -> nn.Module:
    """A module with one collection for each number of rows."""
    collections = [
        ShardedEmbeddingCollection([TableConfig(f"t{k}", 16, count)], {f"f{k}": f"t{k}"})
        for k, count in enumerate(rows)
    ]
    return nn.ModuleList(collections)


def asked() -> MemoryBudget | None:
    raise AssertionError("nobody needs to know")


def test_without_tables_there_is_no_plan_and_nobody_is_asked() -> None:
    assert plan_tables(nn.Linear(1, 1), 2, 64, asked) == ()


@pytest.mark.parametrize("budget", [None, MemoryBudget(1 << 30, "spark.executor.memoryOverhead")])
def test_each_collection_has_a_plan_and_takes_from_what_is_left(
    budget: MemoryBudget | None, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = plan_tables(tables(1_000_000, 2_000_000), 2, 64, lambda: budget)
    assert (first.tables, second.tables, len(first.rank_bytes)) == (1, 1, 2)
    assert min(second.rank_bytes) > max(first.rank_bytes) > 1_000_000 * 16 * 4 / 2
    with caplog.at_level(logging.INFO, "hvdspark"):
        MemoryReport().on_event(FitStarted("uid", {}, ("x",), ("y",), None, 2, (first, second)))
    assert first.text in caplog.text
    if budget is None:
        assert (first.available, first.setting) == (None, "")
        assert "are there" not in caplog.text
    else:
        assert first.available is not None
        assert second.available is not None
        assert first.available - second.available == pytest.approx(max(first.rank_bytes), abs=1)
        assert "1.0 GiB are there (spark.executor.memoryOverhead)" in caplog.text


def test_the_second_collection_is_refused_where_the_first_took_what_there_was() -> None:
    (alone,) = plan_tables(tables(1_000_000), 2, 64, lambda: None)
    budget = MemoryBudget(int(1.5 * max(alone.rank_bytes)), "spark.executor.memoryOverhead")
    assert len(plan_tables(tables(1_000_000), 2, 64, lambda: budget)) == 1
    with pytest.raises(ConfigurationError, match=r"'t1'.*Hint: raise spark.executor.memoryOverhead"):
        plan_tables(tables(1_000_000, 1_000_000), 2, 64, lambda: budget)
