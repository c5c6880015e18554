"""A rank that wants more memory than it may use ends with an error of its own; what runs beside it does not notice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hvdspark.errors import MemoryBudgetError, RankFailedError
from hvdspark.launch.budget import RANK_BYTES, RANK_MEMORY, MemoryBudget, MemoryTerms
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise

GIB = 1 << 30
LIMITED = MemoryTerms(budget=MemoryBudget(GIB - RANK_BYTES, RANK_MEMORY))
ENV = {"OMP_NUM_THREADS": "1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "30"}


def leak(victim: int) -> float:
    """The rank `victim` holds on to all that it works with."""
    from hvdspark import context

    held = []
    while True:
        held.append(torch.ones(4 << 20))  # 16 MiB
        if context().rank != victim:
            held.clear()
        total = context().collective.allreduce_sum(torch.ones(1), "step")
        assert float(total) == context().size


def train(steps: int) -> list[float]:
    """A fit of the same weights whatever happens beside it."""
    from hvdspark import context

    torch.manual_seed(context().rank)
    weights = torch.randn(1000)
    for _ in range(steps):
        gradient = context().collective.allreduce_sum(torch.sin(weights), "step")
        weights = weights - 0.01 * gradient
    return weights.tolist()


def test_a_rank_that_leaks_ends_with_its_name_and_what_to_raise(nothing_left_behind: None) -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        supervise(SameHostLauncher(LIMITED), leak, (1,), None, 2, env=ENV)
    error = caught.value
    assert "rank 1 on host" in str(error)
    assert "1.00 GiB" in str(error)
    assert "raise spark.hvdspark.rankMemory" in str(error)
    assert (error.limit, error.setting, error.table) == (GIB, RANK_MEMORY, None)
    assert 0.9 * GIB < error.bytes < 1.6 * GIB, "that is what it used"
    assert isinstance(error.__cause__, RankFailedError)
    assert (error.__cause__.rank, error.__cause__.kind) == (1, "memory")
    assert "torch.ones" in error.__cause__.traceback_text


@pytest.mark.slow
def test_a_neighbour_of_a_rank_that_leaks_has_the_same_weights(nothing_left_behind: None) -> None:
    def fit(fn: Any, argument: int, size: int) -> list[Any]:
        return supervise(SameHostLauncher(LIMITED), fn, (argument,), None, size, env=ENV)

    alone = fit(train, 2000, 2)
    with ThreadPoolExecutor(2) as threads:
        neighbour, leaking = threads.submit(fit, train, 2000, 2), threads.submit(fit, leak, 0, 1)
        assert isinstance(leaking.exception(100), MemoryBudgetError)
        assert neighbour.result(100) == alone, "bit by bit"
