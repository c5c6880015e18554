"""What every `Collective` has to do. Each case is called on all ranks, and raises where the promise is broken.

`test_conformance.py` runs them on one rank and on threads, `tests/ranks` on processes of Horovod and MPI.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import broadcast_json, raise_together, ranks_where
from hvdspark.errors import CheckpointError
from tests.unit.collectives.dtypes import DTYPES, check_dtype
from tests.unit.collectives.toys import train

Case = Callable[[Collective], None]


def sums(collective: Collective) -> None:
    rank, size = collective.rank, collective.size
    for dtype in (torch.float32, torch.float64, torch.int64):
        mine = torch.tensor([rank + 1, 10 * rank], dtype=dtype)
        total = collective.allreduce_sum(mine, "conformance/sum")
        assert (total.dtype, total.tolist()) == (dtype, [sum(range(1, size + 1)), 10 * sum(range(size))])
        assert mine.tolist() == [rank + 1, 10 * rank]  # the input is left as it is
        total += 1  # and is not the result
        assert mine.tolist() == [rank + 1, 10 * rank]
    large = collective.allreduce_sum(torch.tensor([2**60 + 1]), "conformance/large")
    assert large.item() == size * (2**60 + 1)


def sums_of_any_shape(collective: Collective) -> None:
    for shape in ((), (0,), (1,), (7, 3), (0, 4), (3, 5)):
        total = collective.allreduce_sum(torch.full(shape, collective.rank + 1.0), f"conformance/{shape}")
        assert torch.equal(total, torch.full(shape, float(sum(range(1, collective.size + 1)))))
    turned = (torch.arange(6.0).view(2, 3) * (collective.rank + 1)).t()
    total = collective.allreduce_sum(turned, "conformance/turned")
    assert torch.equal(total, torch.arange(6.0).view(2, 3).t() * sum(range(1, collective.size + 1)))


def sums_are_the_same_bits_everywhere(collective: Collective) -> None:
    # Floating-point addition is not associative: 1e8 + 1 - 1e8 depends on the order.
    random = torch.Generator().manual_seed(collective.rank)
    mine = torch.randn(1000, generator=random).exp() * 10.0 ** (4 * (collective.rank % 3))
    total = collective.allreduce_sum(mine, "conformance/bits")
    assert torch.equal(total, collective.broadcast(total, 0, "conformance/bits of rank 0"))


def broadcasts(collective: Collective) -> None:
    for root in range(collective.size):
        mine = torch.full((2, 3), float(collective.rank))
        got = collective.broadcast(mine, root, "conformance/broadcast")
        assert torch.equal(got, torch.full((2, 3), float(root)))
        turned = collective.broadcast(torch.arange(6.0).view(2, 3).t() + collective.rank, root, "conformance/turned")
        assert torch.equal(turned, torch.arange(6.0).view(2, 3).t() + root)
        assert torch.equal(mine, torch.full((2, 3), float(collective.rank)))


def results_are_not_shared(collective: Collective) -> None:
    got = collective.broadcast(torch.zeros(1), 0, "conformance/own")
    collective.allreduce_sum(torch.zeros(1), "conformance/barrier")
    got += collective.rank
    collective.allreduce_sum(torch.zeros(1), "conformance/barrier")
    assert got.item() == collective.rank


def parameters_are_overwritten_in_place(collective: Collective) -> None:
    module = torch.nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.fill_(float(collective.rank))
    before, root = module.weight, collective.size - 1
    collective.broadcast_parameters(dict(module.named_parameters()), root)
    assert module.weight is before
    assert bool((module.weight == root).all())
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        numbers = torch.arange(12).to(dtype).view(3, 4)
        views = {"turned": lambda x: x.t(), "every other": lambda x: x[:, ::2], "one": lambda x: x[0, 0]}
        mine = {f"{dtype}/{name}": view((numbers + collective.rank).clone()) for name, view in views.items()}
        collective.broadcast_parameters(mine, root)
        for name, view in views.items():
            assert torch.equal(mine[f"{dtype}/{name}"], view(numbers + root)), name


def numbered(rank: int, splits: list[int], spare: int, dtype: torch.dtype) -> Tensor:
    """[sum(splits) + spare, 2]: rows that say where they come from and which of the rank's rows they are."""
    numbers = torch.arange(sum(splits) + spare)
    return torch.stack([torch.full_like(numbers, rank), numbers], dim=1).to(dtype)


def rows_to_their_ranks(collective: Collective, dtype: torch.dtype) -> None:
    rank, size = collective.rank, collective.size
    splits = [[(3 * giver + taker) % 4 for taker in range(size)] for giver in range(size)]
    splits[-1] = [0] * size  # an empty rank
    given = numbered(rank, splits[rank], 5, dtype)
    if rank == 0:
        given = given.t().contiguous().t()  # the same rows, column by column in memory
    mine = torch.tensor(splits[rank], dtype=torch.int32)
    received, received_splits = collective.alltoall(given, mine, f"conformance/{dtype}")
    before = received.clone()
    given.zero_()
    collective.allreduce_sum(torch.zeros(1), "conformance/barrier")
    assert torch.equal(received, before)  # no memory is shared
    assert (received_splits.dtype, received.dtype) == (torch.int32, dtype)
    assert received_splits.tolist() == [splits[giver][rank] for giver in range(size)]
    expected = [
        numbered(giver, splits[giver], 0, dtype)[sum(splits[giver][:rank]) : sum(splits[giver][: rank + 1])]
        for giver in range(size)
    ]
    assert torch.equal(received, torch.cat(expected))


def no_rows_at_all(collective: Collective) -> None:
    nothing = torch.zeros(collective.size, dtype=torch.int32)
    received, splits = collective.alltoall(torch.zeros(1, 3), nothing, "conformance/nothing")
    assert (tuple(received.shape), splits.tolist()) == ((0, 3), nothing.tolist())


def exchanges_in_flight(collective: Collective) -> None:
    """Several begin before the first is waited for, and they are waited for in another order."""
    splits = torch.ones(collective.size, dtype=torch.int32)
    waits = []
    for number in range(3):
        given = torch.arange(collective.size + 1) + 100 * collective.rank + 1000 * number
        waits.append(collective.alltoall_async(given, splits, f"conformance/flight {number}"))
    for number in (1, 2, 0):
        received, _ = waits[number]()
        assert received.tolist() == [collective.rank + 100 * giver + 1000 * number for giver in range(collective.size)]


def splits_that_cannot_be_are_refused(collective: Collective) -> None:
    """Before anything is sent: no rank waits for the one that made the mistake."""
    size = collective.size
    for wrong in (torch.ones(size), torch.full((size,), -1, dtype=torch.int32), torch.ones(size + 1).to(torch.int32)):
        with pytest.raises(ValueError, match="int32 splits"):
            collective.alltoall(torch.zeros(9), wrong, "conformance/refused")
    with pytest.raises(ValueError, match="rows of a tensor of 3"):
        collective.alltoall(torch.zeros(3), torch.full((size,), 4, dtype=torch.int32), "conformance/refused")


def steps_on_the_sum(collective: Collective, accumulation_steps: int) -> None:
    wanted = [-2.0 * accumulation_steps * sum(range(1, collective.size + 1)), -2.0 * accumulation_steps * 100]
    assert train(collective, 2, accumulation_steps) == wanted


def clipped_gradients_are_summed_once(collective: Collective) -> None:
    total = torch.tensor([float(sum(range(1, collective.size + 1))), 100.0])
    assert train(collective, 2, clip=1.0) == pytest.approx((-2 * total / total.norm()).tolist(), rel=1e-5)


def torchs_own_step_is_one_of_them(collective: Collective) -> None:
    total = float(sum(range(1, collective.size + 1)))
    assert train(collective, 3, torchs_own=[0, 2]) == [-3 * total, -300.0]
    for own in ([0], [1], [0, 1]):
        clipped = train(collective, 3, clip=1e9, torchs_own=own)
        assert clipped == [-3 * total, -300.0], "of gradients that are sums already"


def sparse_gradients(collective: Collective) -> None:
    """Of ids that a rank has twice, that ranks share, and of a rank without any."""
    table = torch.nn.Embedding.from_pretrained(torch.zeros(5, 2), freeze=False, sparse=True)
    optimizer = collective.distributed_optimizer(
        torch.optim.SGD(table.parameters(), lr=1.0), table.named_parameters(), sparse_gradients=True
    )
    last = collective.size - 1
    ids = [1, 1, 2] if collective.rank == 0 else [2, 4] if collective.rank != last else []
    table(torch.tensor(ids, dtype=torch.int64)).sum().backward()
    optimizer.step()
    between = max(0, collective.size - 2)
    assert (-table.weight.detach()[:, 0]).tolist() == [0, 2, 1 + between, 0, between]


def ranks_agree(collective: Collective) -> None:
    rank, size = collective.rank, collective.size
    assert broadcast_json(collective, {"from": rank}, size - 1, "conformance/json") == {"from": size - 1}
    assert ranks_where(collective, rank % 2 == 0, "conformance/even") == list(range(0, size, 2))
    raise_together(collective, None, CheckpointError, "conformance")
    error = ValueError("of the last rank") if rank == size - 1 else None
    with pytest.raises(ValueError if error else CheckpointError, match="of the last rank"):
        raise_together(collective, error, CheckpointError, "conformance")


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        *(sums, sums_of_any_shape, sums_are_the_same_bits_everywhere, broadcasts, results_are_not_shared),
        *(parameters_are_overwritten_in_place, no_rows_at_all, exchanges_in_flight, splits_that_cannot_be_are_refused),
        *(clipped_gradients_are_summed_once, torchs_own_step_is_one_of_them, sparse_gradients, ranks_agree),
    )
}
CASES |= {
    f"steps on the sum of {passes} passes": partial(steps_on_the_sum, accumulation_steps=passes) for passes in (1, 3)
}
CASES |= {
    f"rows of {dtype}": partial(rows_to_their_ranks, dtype=dtype)
    for dtype in (torch.int64, torch.float32, torch.float16, torch.bfloat16)
}
CASES |= {f"dtype {dtype}": partial(check_dtype, dtype=dtype) for dtype in DTYPES}


def broken_promises(collective: Collective) -> dict[str, str]:
    """Collective. All cases, one after the other; the tracebacks of those that this rank saw fail, by name."""
    broken = {}
    for name, case in CASES.items():
        try:
            case(collective)
        except Exception:
            broken[name] = traceback.format_exc()
    return broken
