"""A training run that every collective must do alike."""

from __future__ import annotations

from collections.abc import Collection

import torch

from hvdspark.collectives import Collective


def train(
    collective: Collective,
    steps: int,
    accumulation_steps: int = 1,
    clip: float | None = None,
    torchs_own: Collection[int] = (),
) -> list[float]:
    """Plain SGD on two parameters whose gradients on rank r are r + 1 and, on rank 0 only, 100.

    Args:
        torchs_own: steps of which torch's optimizer is told, not the distributed one around it.
    """
    everywhere, rank_0_only = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = collective.distributed_optimizer(
        torch.optim.SGD([everywhere, rank_0_only], lr=1.0),
        [("everywhere", everywhere), ("rank_0_only", rank_0_only)],
        accumulation_steps=accumulation_steps,
    )
    for number in range(steps):
        optimizer.optimizer.zero_grad()
        for _ in range(accumulation_steps):
            loss = everywhere.sum() * (collective.rank + 1)
            if collective.rank == 0:
                loss = loss + rank_0_only.sum() * 100
            loss.backward()
        if rank_0_only.grad is None:  # the promise of every caller: see `distributed_optimizer`
            rank_0_only.grad = torch.zeros_like(rank_0_only)
        if clip is not None:
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_([everywhere, rank_0_only], clip)
        (optimizer.optimizer if number in torchs_own else optimizer).step()
    return [everywhere.item(), rank_0_only.item()]
