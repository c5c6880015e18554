"""What threads do beyond `conformance.py`."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_get_the_same_bits(size: int) -> None:
    # Floating-point addition is not associative: 1e8 + 1 - 1e8 depends on the order.
    values = [1e8, 1.0, -1e8]
    totals = run_threaded(size, lambda c: c.allreduce_sum(torch.tensor([values[c.rank]]), "t"))
    assert len({total.item() for total in totals}) == 1


def test_threaded_ranks_count_what_they_call_and_send() -> None:
    def body(collective: ThreadedCollective) -> tuple[dict[str, int], dict[str, int]]:
        splits = torch.tensor([1, 2, 3], dtype=torch.int32)
        for _ in range(2):
            collective.alltoall(torch.zeros(7, 4, dtype=torch.float16), splits, "rows")
        collective.allreduce_sum(torch.zeros(1), "sum")
        return dict(collective.calls), dict(collective.sent_bytes)

    others = [5, 4, 3]
    expected = [({"rows": 2, "sum": 1}, {"rows": 2 * rows * 4 * 2}) for rows in others]
    assert run_threaded(3, body) == expected


def test_frozen_parameters_get_no_gradient() -> None:
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = LocalCollective().distributed_optimizer(torch.optim.SGD([frozen], lr=1.0), [("frozen", frozen)])
    optimizer.step()
    assert frozen.grad is None


def test_the_first_error_of_a_rank_is_raised_and_ends_the_others() -> None:
    def body(collective: Collective) -> None:
        if collective.rank == 1:
            raise ValueError("rank 1 has a reason")
        collective.allreduce_sum(torch.zeros(1), "never complete")

    started = time.monotonic()
    with pytest.raises(ValueError, match="rank 1 has a reason"):
        run_threaded(3, body)
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rank-")]


def test_a_rank_that_stays_away_is_not_waited_for_for_ever() -> None:
    def body(collective: Collective) -> None:
        if collective.rank == 0:
            collective.allreduce_sum(torch.zeros(1), "t")

    with pytest.raises(threading.BrokenBarrierError):
        run_threaded(2, body, timeout_s=0.2)


def test_different_names_at_the_same_time_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="different collectives"):
        run_threaded(2, lambda c: c.allreduce_sum(torch.zeros(1), f"mine-{c.rank}"))


def test_threaded_ranks_know_their_place() -> None:
    def body(collective: ThreadedCollective) -> tuple[int, int]:
        return collective.rank, collective.size

    assert run_threaded(3, body) == [(0, 3), (1, 3), (2, 3)]
