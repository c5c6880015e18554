"""One int64 key for every (table, id) of a group of tables, and where each key lives.

    key = table index in the group << id_bits | id          never negative; sorted keys are sorted by table, then id

Ids of a bounded table are spread by a permutation of [0, n) instead of a hash: `position = (id * a + b) mod n` with `a`
next to n / golden ratio (Fibonacci hashing, Knuth 6.4), `bucket = position * 4096 // n`. A rank's ids are then one
consecutive run of positions: the slot of an id is arithmetic, no index is stored, consecutive (by frequency sorted) ids
are spread more evenly than by chance, and a checkpoint of some buckets is a slice. Ids of an unbounded table are hashed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hvdspark.embedding.config import TableConfig


class KeySpace:
    """The keys of one group of tables. The order of `tables` gives the table indexes.

    Args:
        tables: of one group.
        home_buckets: for each table the bucket that all its ids live in (placement "table"), or -1 (spread over all).

    Attributes:
        id_bits: bits of a key that hold the id: 63 - bits of the largest table index, so 63 for 1 table, 58 for 26.
        id_limit: ids of unbounded tables must be in [0, id_limit).
    """

    id_bits: int
    id_limit: int

    def __init__(self, tables: Sequence[TableConfig], home_buckets: Sequence[int] | None = None) -> None:
        raise NotImplementedError

    def limit(self, table: int) -> int:
        """Valid ids of a table are in [0, limit)."""
        raise NotImplementedError

    def fuse(self, table: int, ids: Tensor) -> Tensor:
        """Keys of int64 ids of one table, any shape. The ids must be in [0, limit(table)): not checked here."""
        raise NotImplementedError

    def split(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """(table indexes, ids), both int64 [n]."""
        raise NotImplementedError

    def buckets(self, keys: Tensor) -> Tensor:
        """Bucket in [0, 4096) of every key, in any order. int64 [n] -> int64 [n]."""
        raise NotImplementedError

    def owners(self, keys: Tensor, world_size: int) -> Tensor:
        """Rank that owns every key. int64 [n] -> int64 [n]."""
        raise NotImplementedError


_ = np
