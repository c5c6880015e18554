"""How ranks come to one mind: the same value everywhere, or an error everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.errors import HvdSparkError

E = TypeVar("E", bound=HvdSparkError)


def broadcast_json(collective: Collective, value: Any, root: int, name: str) -> Any:
    """Collective. The root's JSON-able value on every rank; what the others pass is ignored."""
    payload = json.dumps(value).encode() if collective.rank == root else b""
    length = int(collective.broadcast(torch.tensor([len(payload)], dtype=torch.int64), root, f"{name}/length").item())
    text = torch.zeros(length, dtype=torch.uint8)
    if collective.rank == root:
        text = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return json.loads(bytes(collective.broadcast(text, root, f"{name}/value").tolist()))


def gathered(collective: Collective, own: Tensor, name: str) -> Tensor:
    """Collective. What each rank gives, one after the other: [*shape], alike on all ranks -> [world size, *shape]."""
    rows = own.new_zeros(collective.size, *own.shape)
    rows[collective.rank] = own
    return collective.allreduce_sum(rows, name)


def ranks_where(collective: Collective, flag: bool, name: str) -> Sequence[int]:
    """Collective. The ranks whose flag is true, ascending; the same list on every rank."""
    flags = gathered(collective, torch.tensor(float(flag)), name)
    return [rank for rank, of_rank in enumerate(flags.tolist()) if of_rank > 0]


def raise_together(collective: Collective, error: Exception | None, kind: type[E], doing: str) -> None:
    """Collective. If any rank brings an error, every rank raises, so that none is left waiting for the others.

    The failing rank raises its own error; the others raise `kind` with the first failing rank's words.
    """
    failed = ranks_where(collective, error is not None, f"train/{doing}/failed")
    if not failed:
        return
    words = broadcast_json(collective, f"{type(error).__name__}: {error}", failed[0], f"train/{doing}/error")
    if error is not None:
        raise error
    raise kind(f"rank {failed[0]} failed in {doing}", value=words)


def on_rank_0(collective: Collective, act: Callable[[], object], kind: type[E], doing: str) -> None:
    """Collective. Rank 0 acts; where that fails every rank raises, as with `raise_together`."""
    error: Exception | None = None
    if collective.rank == 0:
        try:
            act()
        except Exception as caught:  # raised on every rank below
            error = caught
    raise_together(collective, error, kind, doing)
