"""What an eviction takes; what it drops is in test_shard.py."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from hvdspark.embedding.config import Eviction, SparseOptimizer, TableConfig
from hvdspark.embedding.rows.shard import TableShard


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_an_eviction_needs_little_memory_beside_the_table(kept: float) -> None:
    count = 400_000
    table = TableConfig("t", 1, eviction=Eviction(every_steps=10, max_age_steps=5), optimizer=SparseOptimizer("sgd"))
    shard = TableShard([table])
    keys = torch.arange(count)
    for some, step in ((keys, 3), (keys[: int(kept * count)], 9)):
        slots = shard.slots(some, insert=True)
        shard.update(slots, torch.zeros(len(some), 1), step)
    tracemalloc.start()
    try:
        dropped = shard.evict(10)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert dropped == count - int(kept * count)
    assert (peak - left) / count < 6  # bytes for each row: 1 of them says whether it stays
