"""Distinct ids of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function

# The distinct keys, int64 [U]; and which of them each id is, one feature after the other: int64 [L].
Distinct = tuple[Int64Array, Int64Array]

_MAX_KEYS = 1 << 30  # cells hold int32
_distinct = function("kernels_distinct", [*[ADDRESS] * 4, INTEGER, *[ADDRESS] * 3, INTEGER], INTEGER)


_are_below = function("kernels_are_below", [*[ADDRESS] * 3, INTEGER], INTEGER)


def below_reference(ids: Sequence[Int64Array], limits: Sequence[int]) -> bool:
    """Whether the ids of each feature, int64 [n], are in [0, limit)."""
    return all(not len(some) or 0 <= some.min() <= some.max() < limit for some, limit in zip(ids, limits, strict=True))


def below_compiled(ids: Sequence[Int64Array], limits: Sequence[int]) -> bool:
    """`below_reference`, in one pass over the ids of all features."""
    ids = [np.ascontiguousarray(some) for some in ids]
    addresses = np.array([address(some, np.int64) for some in ids], dtype=np.uint64)
    counts = np.array([len(some) for some in ids], dtype=np.int64)
    most = np.array(limits, dtype=np.int64)
    return bool(_are_below(addresses.ctypes.data, counts.ctypes.data, most.ctypes.data, len(ids)))


def reference(ids: Sequence[Int64Array], tags: Sequence[int], limits: Sequence[int] | None = None) -> Distinct | None:
    """Distinct keys: ascending by tag, those of one tag in the order in which they first occur.

    Args:
        ids: of each feature, int64 [n]; not negative where there are several tags.
        tags: of each feature; its keys are ids | tag.
        limits: of each feature, whose ids are in [0, limit).

    Returns: None where an id is not below its limit.
    """
    by_tag = sorted(range(len(ids)), key=tags.__getitem__)
    if limits is not None and not below_reference(ids, limits):
        return None
    keys = np.concatenate([np.empty(0, dtype=np.int64), *(ids[feature] | tags[feature] for feature in by_tag)])
    ascending, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    places = np.empty(len(keys), dtype=np.int64)
    for feature, part in zip(
        by_tag, np.split(numbers[inverse], np.cumsum([len(ids[feature]) for feature in by_tag])), strict=False
    ):
        first_place = sum(len(some) for some in ids[:feature])
        places[first_place : first_place + len(part)] = part
    return ascending[order], places


def compiled(ids: Sequence[Int64Array], tags: Sequence[int], limits: Sequence[int] | None = None) -> Distinct | None:
    """`reference`, by hashing instead of sorting: one pass, with a table for each tag that grows with its keys."""
    counts = [len(some) for some in ids]
    *firsts, count = accumulate(counts, initial=0)
    if count > _MAX_KEYS:
        return reference(ids, tags, limits)
    by_tag = sorted(range(len(ids)), key=tags.__getitem__)
    ids = [np.ascontiguousarray(some) for some in ids]
    found, inverse = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    cells = np.empty(1 << (2 * count).bit_length(), dtype=np.int32)
    begin = inverse.ctypes.data
    described = [
        np.array([address(ids[feature], np.int64) for feature in by_tag], dtype=np.uint64),
        np.array([counts[feature] for feature in by_tag], dtype=np.int64),
        np.array([tags[feature] for feature in by_tag], dtype=np.int64),
        np.array([0 if limits is None else limits[feature] for feature in by_tag], dtype=np.int64),
        np.array([begin + firsts[feature] * inverse.itemsize for feature in by_tag], dtype=np.uint64),
    ]
    given = [array.ctypes.data for array in described]
    size = _distinct(
        *given[:3],
        None if limits is None else given[3],
        len(ids),
        address(found, np.int64),
        given[4],
        address(cells, np.int32),
        len(cells),
    )
    # A copy: what is kept for a step should not hold the memory of all lookups.
    return None if size < 0 else (found[:size].copy(), inverse)


distinct = choose(compiled, reference)
are_below = choose(below_compiled, below_reference)
