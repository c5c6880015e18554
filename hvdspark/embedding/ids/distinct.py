"""Pure index arithmetic of the exchange: distinct keys, the way to their owners, and sums over equal keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.kernels.distinct import distinct
from hvdspark.embedding.kernels.sums import sum_rows


@dataclass(frozen=True)
class Unique:
    """U distinct keys and where they occur among L.

    Attributes:
        keys: int64 [U], in the order in which they first occur if `unique` made them.
        inverse: int64 [L]; keys[inverse] are the keys as they came.
        times: int64 [U], how often each key occurs.
        trivial: there are no equal keys, and they keep their order: `inverse` is 0, 1, 2, ...
    """

    keys: Tensor
    inverse: Tensor
    times: Tensor
    trivial: bool = False


@dataclass(frozen=True)
class Route:
    """How keys travel: sorted by owner, as they came within one owner.

    Attributes:
        order: int64 [U]; keys[order] is what is sent. None: they are sent as they are.
        place: int64 [U]; place[order] = 0 .. U - 1, so what comes back, indexed by place, is in the keys' own order.
            None: it comes back in that order.
        splits: int32 [world size], keys for each rank.
    """

    order: Tensor | None
    place: Tensor | None
    splits: Tensor


def unique(keys: Tensor) -> Unique:
    """Distinct values of int64 [L]."""
    found, inverse, times = distinct(keys.numpy())
    return Unique(torch.from_numpy(found), torch.from_numpy(inverse), torch.from_numpy(times))


def all_distinct(keys: Tensor) -> Unique:
    """What `unique` says of int64 [L] that all differ, without a look at them."""
    return Unique(keys, torch.arange(len(keys)), torch.ones_like(keys), trivial=True)


def whole_table(ids: Tensor, rows: int) -> Unique:
    """All ids of a table as distinct keys, also those that do not occur. int64 [L] in [0, rows) -> U = rows."""
    return Unique(torch.arange(rows), ids, torch.bincount(ids, minlength=rows))


def route(owners: Tensor, world_size: int) -> Route:
    """Sort keys by the rank that owns them, by counting. owners: int64 [U] in [0, world_size), world_size <= 4096."""
    splits = torch.bincount(owners, minlength=world_size).to(torch.int32)
    if bool((splits == len(owners)).any()):
        return Route(None, None, splits)
    order = torch.from_numpy(np.argsort(owners.numpy().astype(np.uint16), kind="stable"))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return Route(order, place, splits)


def sum_equal(values: Tensor, of: Unique, places: Tensor | None = None) -> Tensor:
    """Sum of the rows that belong to each distinct key, in the order they came in. [L, D] float32 -> [U, D].

    Args:
        places: int64 [L]; lookup l has the row values[places[l]], then there may be more rows than L. None: values[l].

    Returns: maybe `values` itself.
    """
    if of.trivial and places is None:
        return values
    return sum_rows(values, of.inverse, len(of.keys), places)
