"""Where keys live: their places in bounded tables, their buckets, and the way to their owners."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function
from hvdspark.embedding.kernels.mixing import mix

_buckets = function("kernels_buckets", [ADDRESS, ADDRESS, INTEGER, INTEGER, ADDRESS], INTEGER)
_positions = function("kernels_positions", [ADDRESS, ADDRESS, INTEGER, ADDRESS], INTEGER)
_route = function("kernels_route", [ADDRESS, INTEGER, INTEGER, *[ADDRESS] * 3], INTEGER)
_meet = function("kernels_meet", [ADDRESS, ADDRESS, INTEGER, ADDRESS])

# Products of two numbers below 2**31 fit into int64. Larger tables multiply their ids in two parts.
_ONE_PRODUCT = 1 << 31
_LOW_BITS = 20
_ONE_OWNER = 2  # what `kernels_route` says then


@dataclass(frozen=True)
class Tables:
    """The tables of a key space, T of them. A key is the number of a table << id_bits | id.

    Attributes:
        id_bits: in [1, 62].
        sizes: int64 [T]; 0: unbounded, its ids are hashed.
        factors, shifts: int64 [T], in [0, size): the position of an id is (id * factor + shift) mod size.
        salts: uint64 [T], of the hashes.
        homes: int64 [T], the bucket of all ids of a table; -1: any.
    """

    id_bits: int
    sizes: Int64Array
    factors: Int64Array
    shifts: Int64Array
    salts: NDArray[np.uint64]
    homes: Int64Array

    def split(self, keys: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(numbers of tables, ids), both int64 [n]."""
        return keys >> self.id_bits, keys & ((1 << self.id_bits) - 1)


class _Tables(ctypes.Structure):
    _fields_ = (
        ("id_bits", ctypes.c_int64),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("sizes", "factors", "shifts", "salts", "homes")),
    )


def positions_reference(tables: Tables, keys: Int64Array) -> Int64Array:
    """Place of keys of bounded tables in their table's permutation: int64 [n] -> int64 [n], each in [0, size).

    Raises:
        IndexError: a key is of no table.
    """
    numbers, ids = tables.split(keys)
    sizes = tables.sizes[numbers]
    found = product(ids, tables.factors[numbers], sizes) + tables.shifts[numbers]
    return np.where(found >= sizes, found - sizes, found)


def positions_compiled(tables: Tables, keys: Int64Array) -> Int64Array:
    """`positions_reference`, in one pass."""
    keys = np.ascontiguousarray(keys)
    found = np.empty(len(keys), dtype=np.int64)
    if not _positions(_address(tables), address(keys, np.int64), len(keys), address(found, np.int64)):
        raise _no_table(tables)
    return found


def buckets_reference(tables: Tables, keys: Int64Array, bucket_bits: int) -> Int64Array:
    """Bucket in [0, 2**bucket_bits) of every key. int64 [n] -> int64 [n].

    Raises:
        IndexError: a key is of no table.
    """
    numbers, ids = tables.split(keys)
    found = hashed_buckets(ids, tables.salts[numbers], bucket_bits)
    bounded = tables.sizes[numbers] > 0
    if bounded.any():
        some = keys[bounded]
        found[bounded] = (positions_reference(tables, some) << bucket_bits) // tables.sizes[numbers[bounded]]
    homes = tables.homes[numbers]
    return np.where(homes >= 0, homes, found)


def hashed_buckets(ids: Int64Array, salts: NDArray[np.uint64] | np.uint64, bucket_bits: int) -> Int64Array:
    """Buckets of ids of unbounded tables. int64 [n] -> int64 [n].

    Args:
        salts: of the ids' tables, so that one id is not hot on the same rank in each; uint64 [n], or one for all.
    """
    return (mix(ids.astype(np.uint64) ^ salts) >> np.uint64(64 - bucket_bits)).view(np.int64)


def buckets_compiled(tables: Tables, keys: Int64Array, bucket_bits: int) -> Int64Array:
    """`buckets_reference`, in one pass."""
    keys = np.ascontiguousarray(keys)
    found = np.empty(len(keys), dtype=np.int64)
    if not _buckets(_address(tables), address(keys, np.int64), len(keys), bucket_bits, address(found, np.int64)):
        raise _no_table(tables)
    return found


Route = tuple[Int64Array | None, Int64Array | None, Int64Array]


def route_reference(owners: Int64Array, world_size: int) -> Route:
    """The way of items to their owners, sorted by owner, as they come within one.

    Args:
        owners: int64 [n] in [0, world_size); world_size <= 2**16.

    Returns:
        order int64 [n], of the items on their way; place int64 [n], where each is among them: place[order] = 0, 1, ...;
        both None where all have one owner. ends int64 [world_size], how many there are up to each owner's last.
    """
    if len(owners) and not 0 <= owners.min() <= owners.max() < world_size:
        raise _no_rank(owners, world_size)
    counts = np.bincount(owners, minlength=world_size)
    if len(owners) in counts:
        return None, None, counts.cumsum()
    order = np.argsort(owners.astype(np.uint16), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return order, place, counts.cumsum()


def route_compiled(owners: Int64Array, world_size: int) -> Route:
    """`route_reference`, by counting."""
    owners = np.ascontiguousarray(owners)
    order, place = np.empty(len(owners), dtype=np.int64), np.empty(len(owners), dtype=np.int64)
    ends = np.empty(world_size, dtype=np.int64)
    arrays = [address(array, np.int64) for array in (order, place, ends)]
    found = _route(address(owners, np.int64), len(owners), world_size, *arrays)
    if not found:
        raise _no_rank(owners, world_size)
    return (None, None, ends) if found == _ONE_OWNER else (order, place, ends)


def meet_reference(counts: NDArray[np.int32], slots: Int64Array) -> BoolArray:
    """Count one more sighting of some slots, in place.

    Args:
        counts: int32 [N].
        slots: int64 [n] in [0, N), each at most once.

    Returns: bool [n], whose count was 0.
    """
    before = counts[slots]
    counts[slots] = before + 1
    return before == 0


def meet_compiled(counts: NDArray[np.int32], slots: Int64Array) -> BoolArray:
    """`meet_reference`, in one pass. IndexError where a slot is not in [0, N)."""
    slots = np.ascontiguousarray(slots)
    if len(slots) and int(slots.view(np.uint64).max()) >= len(counts):  # also a negative one
        raise IndexError(f"slots from {slots.min()} to {slots.max()} of {len(counts)}")
    fresh = np.empty(len(slots), dtype=np.bool_)
    _meet(address(counts, np.int32), address(slots, np.int64), len(slots), address(fresh, np.bool_))
    return fresh


positions = choose(positions_compiled, positions_reference)
buckets = choose(buckets_compiled, buckets_reference)
route = choose(route_compiled, route_reference)
meet = choose(meet_compiled, meet_reference)


def product(left: Int64Array, right: Int64Array, sizes: Int64Array) -> Int64Array:
    """left * right mod sizes; both factors are in [0, size)."""
    if not len(sizes) or sizes.max() <= _ONE_PRODUCT:
        return left * right % sizes
    high = (left >> _LOW_BITS) * ((right << _LOW_BITS) % sizes)
    return (high + (left & ((1 << _LOW_BITS) - 1)) * right) % sizes


def _no_table(tables: Tables) -> IndexError:
    return IndexError(f"a key of none of {len(tables.sizes)} tables")


def _no_rank(owners: Int64Array, world_size: int) -> IndexError:
    return IndexError(f"owners from {owners.min()} to {owners.max()} of {world_size} ranks")


def _address(tables: Tables) -> Any:
    described = _Tables(tables.id_bits, len(tables.sizes))
    for name in ("sizes", "factors", "shifts", "homes"):
        setattr(described, name, address(getattr(tables, name), np.int64))
    described.salts = address(tables.salts, np.uint64)
    return ctypes.byref(described)
