"""Where a key lives: 64-bit mixing, virtual buckets, and which rank owns a bucket.

Buckets, not ranks, are what ids are hashed to: another number of ranks only cuts the same 4096 buckets at other places.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

BUCKET_BITS = 12
BUCKETS = 1 << BUCKET_BITS


def salt_of(*parts: Any) -> int:
    """64 bits that depend on every part (their str()), the same in every process: in [0, 2**64)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def owner_of(bucket: Tensor, world_size: int) -> Tensor:
    """Rank that owns each bucket; a rank's buckets are consecutive. int64 [n] -> int64 [n]."""
    return (bucket * world_size) >> BUCKET_BITS


def bucket_range(rank: int, world_size: int) -> tuple[int, int]:
    """First bucket of a rank and the one after its last: `owner_of(b) == rank` exactly for first <= b < stop."""
    return -(-rank * BUCKETS // world_size), -(-(rank + 1) * BUCKETS // world_size)
