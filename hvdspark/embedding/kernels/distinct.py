"""Distinct ids of a batch."""

from __future__ import annotations

import numpy as np

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function

Distinct = tuple[Int64Array, Int64Array, Int64Array]

_MAX_KEYS = 1 << 30  # cells hold int32
_distinct = function("kernels_distinct", [ADDRESS, INTEGER, *[ADDRESS] * 4, INTEGER], INTEGER)


def reference(keys: Int64Array) -> Distinct:
    """Distinct values, in the order in which they first occur.

    Args:
        keys: any int64 [L].

    Returns:
        distinct int64 [U]; inverse int64 [L], with distinct[inverse] == keys; times int64 [U], how often each occurs.
    """
    ascending, first, inverse, times = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return ascending[order], numbers[inverse], times[order]


def compiled(keys: Int64Array) -> Distinct:
    """`reference`, by hashing instead of sorting: one pass, whose table grows with the distinct keys."""
    keys = np.ascontiguousarray(keys)
    count = len(keys)
    if count > _MAX_KEYS:
        return reference(keys)
    cells = np.empty(1 << (2 * count).bit_length(), dtype=np.int32)
    found, inverse, times = np.empty_like(keys), np.empty_like(keys), np.empty_like(keys)
    arrays = [address(array, np.int64) for array in (found, inverse, times)]
    size = _distinct(address(keys, np.int64), count, *arrays, address(cells, np.int32), len(cells))
    # Copies: what is kept for a step should not hold the memory of all lookups.
    return found[:size].copy(), inverse, times[:size].copy()


distinct = choose(compiled, reference)
