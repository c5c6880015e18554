"""Where a key lives: 64-bit mixing, virtual buckets, and which rank owns a bucket.

Buckets, not ranks, are what ids are hashed to: another number of ranks only cuts the same 4096 buckets at other places.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.kernels.mixing import mix

BUCKETS = 4096
_BUCKET_SHIFT = np.uint64(64 - 12)


def salt_of(*parts: Any) -> int:
    """64 bits that depend on every part (their str()), the same in every process: in [0, 2**64)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bucket_of(ids: Int64Array, salts: NDArray[np.uint64] | np.uint64) -> Int64Array:
    """Bucket in [0, BUCKETS) of ids of unbounded tables. int64 [n] -> int64 [n].

    Args:
        salts: of the ids' tables, from `salt_of("placement", name)`, so that one id is not hot on the same rank in
            every table; uint64 [n], or one for all.
    """
    return (mix(ids.astype(np.uint64) ^ salts) >> _BUCKET_SHIFT).view(np.int64)


def owner_of(bucket: Tensor, world_size: int) -> Tensor:
    """Rank that owns each bucket; a rank's buckets are consecutive. int64 [n] -> int64 [n]."""
    return (bucket * world_size) >> (BUCKETS.bit_length() - 1)


def bucket_range(rank: int, world_size: int) -> tuple[int, int]:
    """First bucket of a rank and the one after its last: `owner_of(b) == rank` exactly for first <= b < stop."""
    return -(-rank * BUCKETS // world_size), -(-(rank + 1) * BUCKETS // world_size)
