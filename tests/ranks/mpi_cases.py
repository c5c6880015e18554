"""What every rank does in test_mpi_ranks, with whatever collective it is given."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives import Collective, MpiCollective, current_collective
from hvdspark.errors import CollectiveTimeoutError
from tests.ranks import embedding_cases
from tests.unit.collectives.toys import train

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
SHAPES = ((), (0,), (1,), (5,), (7, 3), (0, 4), (1000, 33))


def on_rank(collective: Collective | None = None) -> dict[str, Any]:
    """Collective. Digests of what every operation gives, by case."""
    if collective is None:
        collective = current_collective()
        assert isinstance(collective, MpiCollective)
    return {
        "rank": [collective.rank, collective.size],
        "sums": _sums(collective),
        "broadcasts": _broadcasts(collective),
        "alltoall": _alltoalls(collective),
        "parameters": _parameters(collective),
        "optimizer": [train(collective, 3), train(collective, 2, 3), train(collective, 2, clip=1.0)],
        "sparse gradients": _sparse_gradients(collective),
        "embedding": embedding_cases.on_rank(collective),
    }


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of very different sizes, whose sum depends on the order of adding."""
    chosen = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=chosen, dtype=torch.float64).exp() * 10).to(dtype)


def digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _sums(collective: Collective) -> dict[str, str]:
    found = {}
    for shape in SHAPES:
        for dtype in DTYPES:
            mine = drawn(shape, dtype, collective.rank)
            before = mine.clone()
            found[f"{shape} {dtype}"] = digest(collective.allreduce_sum(mine, "sum"))
            assert torch.equal(mine, before)
    turned = drawn((7, 3), torch.float32, collective.rank).t()
    found["not contiguous"] = digest(collective.allreduce_sum(turned, "turned"))
    return found


def _broadcasts(collective: Collective) -> list[str]:
    found = []
    for root in range(collective.size):
        for shape in SHAPES:
            mine = drawn(shape, torch.bfloat16, collective.rank)
            before = mine.clone()
            found.append(digest(collective.broadcast(mine, root, "broadcast")))
            assert torch.equal(mine, before)
    return found


def _alltoalls(collective: Collective) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rank, size = collective.rank, collective.size
    for columns in ((), (3,), (2, 5), (0,)):
        for dtype in DTYPES:
            # One rank gives nothing, some pairs exchange nothing, and there are spare rows.
            splits = torch.tensor([0 if rank == 1 else (3 * rank + taker) % 4 for taker in range(size)])
            given = drawn((int(splits.sum()) + 5, *columns), dtype, rank)
            received, received_splits = collective.alltoall(given, splits.to(torch.int32), "rows")
            kept = received.clone()
            given.zero_()
            collective.allreduce_sum(torch.zeros(1), "barrier")
            assert torch.equal(received, kept)
            assert received_splits.dtype == torch.int32
            found[f"{columns} {dtype}"] = [digest(received), received_splits.tolist()]
    none, splits = collective.alltoall(torch.zeros(1, 3), torch.zeros(size, dtype=torch.int32), "nothing")
    return {**found, "nothing": [list(none.shape), splits.tolist()]}


def _parameters(collective: Collective) -> str:
    weight, bias = (torch.nn.Parameter(drawn((5, 3), torch.float32, 2 * collective.rank + i)) for i in range(2))
    collective.broadcast_parameters({"weight": weight, "bias": bias}, root=1)
    return digest(weight.detach(), bias.detach())


def _sparse_gradients(collective: Collective) -> str:
    """A table with sparse gradients: ids that a rank has twice, that ranks share, and a rank without any."""
    table = torch.nn.Embedding.from_pretrained(drawn((50, 3), torch.float32, 9), freeze=False, sparse=True)
    optimizer = collective.distributed_optimizer(
        torch.optim.Adagrad(table.parameters(), lr=0.1), table.named_parameters(), sparse_gradients=True
    )
    for step in range(4):
        chosen = torch.Generator().manual_seed(step * collective.size + collective.rank)
        rows = 0 if (step, collective.rank) == (2, 1) else 40
        ids = torch.randint(0, 50, (rows,), generator=chosen)
        optimizer.optimizer.zero_grad()
        (table(ids) * drawn((rows, 3), torch.float32, step)).sum().backward()
        optimizer.step()
    return digest(table.weight.detach())


def until_alone() -> str:
    """The last rank leaves early; the others wait for it, and give up."""
    collective = MpiCollective(timeout_s=1.0)
    total = collective.allreduce_sum(torch.ones(1), "together")
    assert total.item() == collective.size
    if collective.rank == collective.size - 1:
        return "left"
    collective.alltoall(torch.zeros(8, 2), torch.ones(collective.size, dtype=torch.int32), "alone")
    return "not alone"


def caught() -> str:
    """As `until_alone`, with somebody who catches the error: the launch must not end well all the same."""
    try:
        return until_alone()
    except CollectiveTimeoutError as error:
        print("gave up", file=sys.stderr)
        return str(error)
