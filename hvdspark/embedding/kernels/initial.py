"""Random bits and uniform numbers that depend on an id alone: what initial rows are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, NUMBER, address, choose, function
from hvdspark.embedding.kernels.mixing import mix

_STREAM_STEP = np.uint64(0x9E3779B97F4A7C15)
# Work memory stays in a core's cache: 2**15 counters of 8 bytes.
_CHUNK_COUNTERS = 1 << 15
_uniform = function("kernels_initial_uniform", [ADDRESS, INTEGER, INTEGER, INTEGER, INTEGER, NUMBER, NUMBER, ADDRESS])


def random_bits(ids: Int64Array, table_hash: np.uint64, columns: int) -> NDArray[np.uint32]:
    """32 bits for each column, and one more where they are odd: uint32 [n, columns rounded up].

    Columns 2j and 2j + 1 are output j of a splitmix64 stream that begins at the hash of the id and its table.
    """
    counters = np.arange((columns + 1) // 2, dtype=np.uint64) * _STREAM_STEP
    return mix(mix(ids.astype(np.uint64) ^ table_hash)[:, None] + counters).view(np.uint32)


def chunk_of(columns: int) -> int:
    """Ids that are worked on at a time."""
    return max(1, _CHUNK_COUNTERS // max(1, (columns + 1) // 2))


def uniform_reference(ids: Int64Array, table_hash: np.uint64, scale: float, rows: NDArray[np.float32]) -> None:
    """Write numbers in [-scale, scale) on 2**24 steps: exactly what a float32 can hold.

    Args:
        ids: int64 [n].
        rows: float32 [n, D], all of whose columns are written.
    """
    for start in range(0, len(ids), chunk_of(rows.shape[1])):
        some = slice(start, start + chunk_of(rows.shape[1]))
        bits = random_bits(ids[some], table_hash, rows.shape[1])[:, : rows.shape[1]]
        rows[some] = (bits >> np.uint32(8)).astype(np.float32) * np.float32(_factor(scale)) - np.float32(scale)


def uniform_compiled(ids: Int64Array, table_hash: np.uint64, scale: float, rows: NDArray[np.float32]) -> None:
    """`uniform_reference`, in one pass. IndexError unless there is one row for each id, its columns side by side."""
    if not rows.size and len(rows) == len(ids):
        return
    ids = np.ascontiguousarray(ids)
    if rows.dtype != np.float32 or len(rows) != len(ids) or rows.strides[1] != 4 or rows.strides[0] % 4:
        raise IndexError(f"{len(ids)} ids for rows {rows.shape} of {rows.dtype}")
    hashed = int(table_hash.astype(np.int64))
    start, stride = rows.ctypes.data, rows.strides[0] // 4
    _uniform(address(ids, np.int64), len(ids), hashed, rows.shape[1], stride, _factor(scale), scale, start)


uniform = choose(uniform_compiled, uniform_reference)


def _factor(scale: float) -> float:
    return 2 * scale / (1 << 24)
