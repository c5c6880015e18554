"""Which rank the others wait for."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import gathered

# Where ranks are alike, the slowest is not this much slower than the middle of the others.
_FACTOR, _LEAST_S = 1.5, 1.0


def straggler(busy: Sequence[float]) -> tuple[int, float] | None:
    """(rank, median seconds of the others) where one rank was busy much longer than they were. Pure.

    Args:
        busy: by rank, seconds of an epoch in which it loaded and computed.
    """
    if len(busy) < 2:
        return None
    slowest = max(range(len(busy)), key=lambda rank: busy[rank])
    others = statistics.median(seconds for rank, seconds in enumerate(busy) if rank != slowest)
    late = busy[slowest] > max(_FACTOR * others, others + _LEAST_S)
    return (slowest, others) if late else None


def busy_by_rank(collective: Collective, seconds: float) -> list[float]:
    """Collective. What each rank gives for itself."""
    return gathered(collective, torch.tensor(seconds, dtype=torch.float64), "train/busy").tolist()
