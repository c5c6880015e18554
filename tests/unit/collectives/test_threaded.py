from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from tests.unit.collectives.toys import train

SIZES = [1, 2, 3, 5]


def on_ranks(size: int, fn: Callable[[Collective], object]) -> list[object]:
    """`fn` on the collective that this size deserves: one rank is LocalCollective."""
    return [fn(LocalCollective())] if size == 1 else run_threaded(size, fn)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_allreduce_sum(size: int, dtype: torch.dtype) -> None:
    def body(collective: Collective) -> torch.Tensor:
        mine = torch.tensor([collective.rank + 1, 10 * collective.rank], dtype=dtype)
        total = collective.allreduce_sum(mine, "t")
        assert mine.tolist() == [collective.rank + 1, 10 * collective.rank]  # the input is left as it is
        total += 0
        return total

    expected = [sum(range(1, size + 1)), 10 * sum(range(size))]
    for total in on_ranks(size, body):
        assert total.dtype == dtype
        assert total.tolist() == expected


@pytest.mark.parametrize("size", [2, 3])
def test_all_ranks_get_the_same_bits(size: int) -> None:
    # Floating-point addition is not associative: 1e8 + 1 - 1e8 depends on the order.
    values = [1e8, 1.0, -1e8]
    totals = run_threaded(size, lambda c: c.allreduce_sum(torch.tensor([values[c.rank]]), "t"))
    assert len({total.item() for total in totals}) == 1


@pytest.mark.parametrize("size", SIZES)
def test_broadcast(size: int) -> None:
    root = size - 1
    results = on_ranks(size, lambda c: c.broadcast(torch.full((2,), float(c.rank)), root, "b"))
    assert [result.tolist() for result in results] == [[root, root]] * size


def test_results_are_not_shared_between_ranks() -> None:
    def body(collective: Collective) -> torch.Tensor:
        got = collective.broadcast(torch.zeros(1), 0, "b")
        collective.allreduce_sum(torch.zeros(1), "barrier")
        got += collective.rank
        collective.allreduce_sum(torch.zeros(1), "barrier")
        return got

    assert [result.item() for result in run_threaded(3, body)] == [0, 1, 2]


def test_broadcast_parameters_overwrites_in_place() -> None:
    def body(collective: Collective) -> bool:
        module = torch.nn.Linear(2, 1)
        with torch.no_grad():
            module.weight.fill_(float(collective.rank))
        before = module.weight
        collective.broadcast_parameters(dict(module.named_parameters()), root=1)
        return module.weight is before and bool((module.weight == 1).all())

    assert run_threaded(3, body) == [True] * 3


def numbered(rank: int, splits: list[int], spare: int, dtype: torch.dtype) -> torch.Tensor:
    """[sum(splits) + spare, 2]: rows that say where they come from and which of the rank's rows they are."""
    numbers = torch.arange(sum(splits) + spare)
    return torch.stack([torch.full_like(numbers, rank), numbers], dim=1).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float16, torch.bfloat16])
def test_alltoall(size: int, dtype: torch.dtype) -> None:
    splits = [[(3 * giver + taker) % 4 for taker in range(size)] for giver in range(size)]
    splits[-1] = [0] * size  # an empty rank

    def body(collective: Collective) -> tuple[torch.Tensor, torch.Tensor]:
        given = numbered(collective.rank, splits[collective.rank], 5, dtype)
        mine = torch.tensor(splits[collective.rank], dtype=torch.int32)
        received, received_splits = collective.alltoall(given, mine, "t")
        before = received.clone()
        given.zero_()
        collective.allreduce_sum(torch.zeros(1), "barrier")
        assert torch.equal(received, before)  # no memory is shared
        return received, received_splits

    for rank, (received, received_splits) in enumerate(on_ranks(size, body)):  # type: ignore[misc]
        assert received_splits.dtype == torch.int32
        assert received_splits.tolist() == [splits[giver][rank] for giver in range(size)]
        assert received.dtype == dtype
        expected = [
            numbered(giver, splits[giver], 0, dtype)[sum(splits[giver][:rank]) : sum(splits[giver][: rank + 1])]
            for giver in range(size)
        ]
        assert torch.equal(received, torch.cat(expected))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("splits", [torch.tensor([1]), torch.tensor([-1, 1], dtype=torch.int32)])
def test_alltoall_refuses_splits_that_cannot_be(size: int, splits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="int32 splits"):
        on_ranks(size, lambda c: c.alltoall(torch.zeros(3), splits, "t"))
    too_many = torch.full((size,), 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="rows of a tensor of 3"):
        on_ranks(size, lambda c: c.alltoall(torch.zeros(3), too_many, "t"))


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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_optimizer_steps_with_the_sum_of_all_gradients(size: int, accumulation_steps: int) -> None:
    expected = [-2.0 * accumulation_steps * sum(range(1, size + 1)), -2.0 * accumulation_steps * 100]
    assert on_ranks(size, lambda c: train(c, 2, accumulation_steps)) == [expected] * size


@pytest.mark.parametrize("size", [1, 2])
def test_gradients_are_summed_once_when_clipped_by_hand(size: int) -> None:
    total = torch.tensor([float(sum(range(1, size + 1))), 100.0])
    expected = (-2 * total / total.norm()).tolist()
    for result in on_ranks(size, lambda c: train(c, 2, clip=1.0)):
        assert result == pytest.approx(expected, rel=1e-5)


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
