"""Pure index arithmetic of the exchange: distinct keys, the way to their owners, and sums over equal keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.kernels.distinct import distinct
from hvdspark.embedding.kernels.placement import route as sort_by_owner
from hvdspark.embedding.kernels.sums import sum_rows


@dataclass(frozen=True)
class Unique:
    """U distinct keys and where they occur among L.

    Attributes:
        keys: int64 [U]; those that `unique` and `unique_of_tables` make are in the order in which they first occur, in
            each table.
        inverse: int64 [L]; keys[inverse] are the keys as they came.
        trivial: there are no equal keys, and they keep their order: `inverse` is 0, 1, 2, ...
    """

    keys: Tensor
    inverse: Tensor
    trivial: bool = False

    @cached_property
    def times(self) -> Tensor:
        """How often each key occurs: int64 [U]."""
        return torch.bincount(self.inverse, minlength=len(self.keys))


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
    found = distinct([keys.numpy()], [0])
    assert found is not None  # there are no limits
    return Unique(torch.from_numpy(found[0]), torch.from_numpy(found[1]))


def unique_of_tables(ids: Sequence[Tensor], tags: Sequence[int], limits: Sequence[int]) -> Unique | None:
    """Distinct keys of the ids of some features, one table after the other.

    Args:
        ids: of each feature, int64 [n].
        tags: of each feature's table, see `KeySpace.tag`: its keys are ids | tag.
        limits: of each feature's table: ids are in [0, limit).

    Returns: None if an id is not.
    """
    found = distinct([some.numpy() for some in ids], tags, limits)
    return None if found is None else Unique(torch.from_numpy(found[0]), torch.from_numpy(found[1]))


def all_distinct(keys: Tensor) -> Unique:
    """What `unique` says of int64 [L] that all differ, without a look at them."""
    return Unique(keys, torch.arange(len(keys)), trivial=True)


def whole_table(ids: Tensor, rows: int) -> Unique:
    """All ids of a table as distinct keys, also those that do not occur. int64 [L] in [0, rows) -> U = rows."""
    return Unique(torch.arange(rows), ids)


def route(owners: Tensor, world_size: int) -> Route:
    """Sort keys by the rank that owns them, by counting. owners: int64 [U] in [0, world_size), world_size <= 4096."""
    order, place, ends = sort_by_owner(owners.numpy(), world_size)
    splits = torch.from_numpy(np.diff(ends, prepend=0).astype(np.int32))
    if order is None or place is None:
        return Route(None, None, splits)
    return Route(torch.from_numpy(order), torch.from_numpy(place), splits)


def whole_route(count: int) -> Route:
    """All keys to the one rank that there is."""
    return Route(None, None, torch.tensor([count], dtype=torch.int32))


def sum_equal(values: Tensor, of: Unique, places: Tensor | None = None) -> Tensor:
    """Sum of the rows that belong to each distinct key, in the order they came in. [L, D] float32 -> [U, D].

    Args:
        places: int64 [L]; lookup l has the row values[places[l]], then there may be more rows than L. None: values[l].

    Returns: maybe `values` itself.
    """
    if of.trivial and places is None:
        return values
    return sum_rows(values, of.inverse, len(of.keys), places)
