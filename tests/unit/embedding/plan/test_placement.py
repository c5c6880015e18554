from __future__ import annotations

import pytest
import torch

from hvdspark.embedding.config import SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import owner_of
from hvdspark.embedding.plan.placement import MAX_REPLICATED_ROWS, group_tables, home_buckets, is_replicated


@pytest.mark.parametrize(
    ("rows", "placement", "expected"),
    [
        (MAX_REPLICATED_ROWS, "auto", True),
        (MAX_REPLICATED_ROWS + 1, "auto", False),
        (None, "auto", False),
        (10, "row", False),
        (10, "table", False),
        (10**6, "replicated", True),
    ],
)
def test_small_tables_are_replicated(rows: int | None, placement: str, expected: bool) -> None:
    assert is_replicated(TableConfig("t", 4, rows, placement=placement)) is expected


def test_groups_share_dim_dtype_and_optimizer() -> None:
    tables = [
        TableConfig("a", 4),
        TableConfig("b", 8),
        TableConfig("c", 4, 100),
        TableConfig("d", 4, dtype="bfloat16"),
        TableConfig("e", 4, optimizer=SparseOptimizer("sgd")),
    ]
    assert [[table.name for table in group] for group in group_tables(tables)] == [["a", "c"], ["b"], ["d"], ["e"]]
    assert group_tables([]) == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_whole_tables_are_spread_evenly(count: int) -> None:
    tables = [TableConfig(f"t{number}", 4, placement="table") for number in range(count)]
    homes = home_buckets([*tables[:1], TableConfig("spread", 4), *tables[1:]])
    assert homes.pop(1) == -1
    assert owner_of(torch.tensor(homes), count).tolist() == list(range(count))
