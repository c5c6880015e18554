"""Pure index arithmetic of the exchange: distinct keys, the way to their owners, and sums over equal keys.

One sort of a batch's keys gives the distinct keys, the way back to every lookup, and the order in which gradients of
equal keys are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Unique:
    """U distinct keys and where they occur among L.

    Attributes:
        keys: int64 [U], ascending.
        inverse: int64 [L]; keys[inverse] are the keys as they came.
        order: int64 [L]; the places of the first key, then of the second ...; equal keys in the order they came in.
        offsets: int64 [U]; order[offsets[u]] is the first place of key u.
    """

    keys: Tensor
    inverse: Tensor
    order: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Route:
    """How keys travel: sorted by owner, as they came within one owner.

    Attributes:
        order: int64 [U]; keys[order] is what is sent.
        place: int64 [U]; place[order] = 0 .. U - 1, so what comes back, indexed by place, is in the keys' own order.
        splits: int32 [world size], keys for each rank.
    """

    order: Tensor
    place: Tensor
    splits: Tensor


def unique(keys: Tensor) -> Unique:
    """Distinct values of int64 [L]. Keys that ascend strictly (an owner that one rank alone asks) are not sorted."""
    count = keys.numel()
    if count < 2 or bool((keys[1:] > keys[:-1]).all()):
        here = torch.arange(count)
        return Unique(keys, here, here, here)
    ascending, order = torch.sort(keys, stable=True)
    first = torch.empty(count, dtype=torch.bool)
    first[0] = True
    torch.ne(ascending[1:], ascending[:-1], out=first[1:])
    offsets = first.nonzero().squeeze(1)
    inverse = torch.empty(count, dtype=torch.int64)
    inverse[order] = first.cumsum(0).sub_(1)
    return Unique(ascending[offsets], inverse, order, offsets)


def route(owners: Tensor, world_size: int) -> Route:
    """Sort keys by the rank that owns them. owners: int64 [U] in [0, world_size)."""
    # A sort of 16 bits is a counting sort of two passes.
    order = torch.sort(owners.to(torch.int16), stable=True).indices
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return Route(order, place, torch.bincount(owners, minlength=world_size).to(torch.int32))


def sum_equal(values: Tensor, distinct: Unique) -> Tensor:
    """Sum of the rows that belong to each distinct key, in the order they came in. [L, D] float32 -> [U, D]."""
    if len(distinct.keys) == 0:
        return values.new_zeros(0, values.shape[1])
    return F.embedding_bag(distinct.order, values, distinct.offsets, mode="sum")
