from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch

from hvdspark.embedding.rows.slab import Slab


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int32])
def test_take_what_was_put(dtype: torch.dtype) -> None:
    slab = Slab(10, (3,), dtype)
    rows = torch.arange(6).reshape(2, 3).to(dtype)
    slab.put(np.array([7, 2]), rows)
    slab.resize(20)
    assert len(slab) == 20
    assert torch.equal(slab.take(np.array([2, 7, 19])), torch.cat([rows.flip(0), torch.zeros(1, 3, dtype=dtype)]))
    assert slab.nbytes == 20 * 3 * dtype.itemsize


@pytest.mark.parametrize("first", [0, 70_000])
def test_gaps_are_closed_in_order(first: int) -> None:
    slab = Slab(300_000, (2,), torch.int32)
    slab.memory[:, 0] = np.arange(300_000)
    kept = np.arange(200_000) % 3 == 1
    slab.move_up(first, kept)
    assert (slab.memory[:first, 0] == np.arange(first)).all()
    assert (slab.memory[first : first + kept.sum(), 0] == first + np.flatnonzero(kept)).all()


def test_memory_is_taken_by_what_is_written() -> None:
    """Neither a new slab nor one that grows takes its size twice."""
    process = psutil.Process()
    before = process.memory_info().rss
    slab = Slab(4_000_000, (16,), torch.float32)  # 256 MB
    assert process.memory_info().rss - before < 20 << 20
    slab.memory[:1_000_000] = 1
    slab.resize(4_100_000)
    assert process.memory_info().rss - before < 100 << 20
    assert slab.memory[999_999, 15] == 1
