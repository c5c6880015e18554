"""Loops of a hash index (`rows.key_index`): open addressing with linear probing, a cell holds the place of a key.

`cells` is int32 [a power of two], -1 where free, at least one is; `keys[place]` is the key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function
from hvdspark.embedding.kernels.mixing import mix

Cells = NDArray[np.int32]
Counts = NDArray[np.int32]

_find = function("kernels_index_find", [ADDRESS, INTEGER, ADDRESS, ADDRESS, INTEGER, ADDRESS, ADDRESS])
_place = function("kernels_index_place", [ADDRESS, INTEGER, ADDRESS, INTEGER, INTEGER])


def first_cells(keys: Int64Array, mask: int) -> Int64Array:
    """Where the search for each key begins: int64 [n], in [0, mask]."""
    return (mix(keys.astype(np.uint64)) & np.uint64(mask)).view(np.int64)


def find_reference(cells: Cells, keys: Int64Array, asked: Int64Array, counts: Counts | None = None) -> Int64Array:
    """Place of every asked key, -1 where there is none. int64 [n] -> int64 [n].

    All are probed together, one cell further in every round.

    Args:
        asked: each at most once where there are counts.
        counts: int32, by place: one more for each key that is found.
    """
    places = np.full(len(asked), -1, dtype=np.int64)
    mask = len(cells) - 1
    at, waiting = first_cells(asked, mask), np.arange(len(asked))
    while len(waiting):
        found = cells[at]
        occupied = found >= 0
        equal = occupied.copy()
        equal[occupied] = keys[found[occupied]] == asked[waiting[occupied]]
        places[waiting[equal]] = found[equal]
        further = occupied & ~equal
        waiting = waiting[further]
        at = (at[further] + 1) & mask
    if counts is not None:
        counts[places[places >= 0]] += 1
    return places


def find_compiled(cells: Cells, keys: Int64Array, asked: Int64Array, counts: Counts | None = None) -> Int64Array:
    """`find_reference`; what 64 ids need is fetched together. IndexError for fewer counts than keys."""
    if counts is not None and len(counts) < len(keys):
        raise IndexError(f"{len(counts)} counts for {len(keys)} keys")
    asked = np.ascontiguousarray(asked)
    places = np.empty(len(asked), dtype=np.int64)
    _find(
        address(cells, np.int32),
        len(cells) - 1,
        address(keys, np.int64),
        address(asked, np.int64),
        len(asked),
        address(places, np.int64),
        None if counts is None else address(counts, np.int32),
    )
    return places


def place_reference(cells: Cells, keys: Int64Array, first: int, stop: int) -> None:
    """Give the keys [first, stop), which are distinct and in no cell yet, their cells."""
    mask = len(cells) - 1
    at = first_cells(keys[first:stop], mask)
    places = np.arange(first, stop, dtype=np.int32)
    while len(places):
        free = cells[at] < 0
        # Of several keys that want one free cell the last one gets it; reading back tells which.
        cells[at[free]] = places[free]
        beaten = cells[at] != places
        places = places[beaten]
        at = (at[beaten] + 1) & mask


def place_compiled(cells: Cells, keys: Int64Array, first: int, stop: int) -> None:
    """`place_reference`; which cell a key gets among those of its cluster may differ, and nothing depends on it."""
    if not 0 <= first <= stop <= min(len(keys), len(cells) - 1):
        raise IndexError(f"keys [{first}, {stop}) of {len(keys)} in {len(cells)} cells")
    _place(address(cells, np.int32), len(cells) - 1, address(keys, np.int64), first, stop)


find = choose(find_compiled, find_reference)
place = choose(place_compiled, place_reference)
