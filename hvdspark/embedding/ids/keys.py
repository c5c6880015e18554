"""One int64 key for every (table, id) of a group of tables, and where each key lives.

    key = table index in the group << id_bits | id          never negative; sorted keys are sorted by table, then id

Ids of a bounded table are spread by a permutation of [0, n) instead of a hash: `position = (id * a + b) mod n` with `a`
next to n / golden ratio (Fibonacci hashing, Knuth 6.4), `bucket = position * 4096 // n`. A rank's ids are then one
consecutive run of positions: the slot of an id is arithmetic, no index is stored, consecutive ids (often sorted by
frequency) are spread more evenly than by chance, and a checkpoint of some buckets is a slice. Ids of an unbounded table
are hashed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.distinct import Route, route, whole_route
from hvdspark.embedding.ids.hashing import BUCKET_BITS, BUCKETS, owner_of, salt_of
from hvdspark.embedding.kernels import placement

_GOLDEN = (math.sqrt(5) - 1) / 2


class KeySpace:
    """The keys of one group of tables. The order of `tables` gives the table indexes.

    Args:
        tables: of one group.
        home_buckets: for each table the bucket that all its ids live in (placement "table"), or -1 (spread over all).

    Attributes:
        id_bits: bits of a key that hold the id: no more than the largest table needs if all are bounded, else 62 for 1
            or 2 tables, 60 for up to 8, 58 for up to 32.
        id_limit: ids of unbounded tables must be in [0, id_limit).
    """

    def __init__(self, tables: Sequence[TableConfig], home_buckets: Sequence[int] | None = None) -> None:
        self.home_buckets = list(home_buckets) if home_buckets is not None else [-1] * len(tables)
        sizes = [table.num_embeddings or 0 for table in tables]
        # Never 63 bits: `id_limit` must be an int64, too.
        unbounded_bits = 63 - max(1, (len(tables) - 1).bit_length())
        self.id_bits = (max(sizes) - 1).bit_length() if all(sizes) else unbounded_bits
        self.id_limit = 1 << self.id_bits
        factors = [_coprime_near_golden(size) for size in sizes]
        self.bounded = np.array([size > 0 for size in sizes])
        salts = [salt_of("placement", table.name) for table in tables]
        self.salts = np.array(salts, dtype=np.uint64)
        self._tables = placement.Tables(
            self.id_bits,
            sizes=np.array(sizes, dtype=np.int64),
            factors=np.array(factors, dtype=np.int64),
            shifts=np.array([salt % max(size, 1) for salt, size in zip(salts, sizes, strict=True)], dtype=np.int64),
            salts=self.salts,
            homes=np.array(self.home_buckets, dtype=np.int64),
        )
        self._inverses = np.array(
            [pow(a, -1, n) if n > 1 else 0 for a, n in zip(factors, sizes, strict=True)], dtype=np.int64
        )

    def limit(self, table: int) -> int:
        """Valid ids of a table are in [0, limit)."""
        return int(self._tables.sizes[table]) or self.id_limit

    def tag(self, table: int) -> int:
        """What the keys of a table have beside their ids: key = id | tag."""
        return table << self.id_bits

    def fuse(self, table: int, ids: Tensor) -> Tensor:
        """Keys of int64 ids of one table, any shape. The ids must be in [0, limit(table)): not checked here."""
        return ids | self.tag(table)

    def tables_of(self, keys: Int64Array) -> Int64Array:
        """Table index of every key. int64 [n] -> int64 [n]."""
        return keys >> self.id_bits

    def ids_of(self, keys: Int64Array) -> Int64Array:
        """Id of every key in its table. int64 [n] -> int64 [n]."""
        return keys & (self.id_limit - 1)

    def run_of(self, table: int, keys: Int64Array) -> slice:
        """Where the keys of one table are among ascending ones."""
        least = table << self.id_bits
        return slice(int(keys.searchsorted(least)), int(keys.searchsorted(least + self.id_limit - 1, side="right")))

    def buckets(self, keys: Tensor) -> Tensor:
        """Bucket in [0, 4096) of every key, in any order. int64 [n] -> int64 [n]."""
        return torch.from_numpy(placement.buckets(self._tables, keys.numpy(), BUCKET_BITS))

    def owners(self, keys: Tensor, world_size: int) -> Tensor:
        """Rank that owns every key. int64 [n] -> int64 [n]."""
        return owner_of(self.buckets(keys), world_size)

    def route(self, keys: Tensor, world_size: int, ranks: Tensor | None = None) -> Route:
        """The way of keys to the ranks that own them. int64 [n].

        Args:
            ranks: int64 [world_size], the rank that has each run of buckets; None: that of its own number.
        """
        if world_size == 1:
            return whole_route(len(keys))
        runs = self.owners(keys, world_size)
        return route(runs if ranks is None else ranks[runs], world_size)

    def positions(self, keys: Tensor) -> Tensor:
        """Place of keys of bounded tables in their table's permutation: int64 [n], each in [0, num_embeddings)."""
        return torch.from_numpy(placement.positions(self._tables, keys.numpy()))

    def keys_at(self, tables: Tensor, positions: Tensor) -> Tensor:
        """Keys of bounded tables from their places: the inverse of `positions`. int64 [n], int64 [n] -> int64 [n]."""
        index = tables.numpy()
        sizes = self._tables.sizes[index]
        offsets = (positions.numpy() - self._tables.shifts[index]) % sizes
        return torch.from_numpy(placement.product(offsets, self._inverses[index], sizes)) | (tables << self.id_bits)

    def position_range(self, table: int, first_bucket: int, stop_bucket: int) -> tuple[int, int]:
        """Positions of a bounded table that lie in the buckets [first_bucket, stop_bucket): [first, stop)."""
        size, home = int(self._tables.sizes[table]), self.home_buckets[table]
        if home >= 0:
            return (0, size) if first_bucket <= home < stop_bucket else (0, 0)
        return -(-first_bucket * size // BUCKETS), -(-stop_bucket * size // BUCKETS)


def _coprime_near_golden(size: int) -> int:
    factor = max(1, round(size * _GOLDEN))
    while math.gcd(factor, max(size, 1)) != 1:
        factor += 1
    return factor % size if size > 1 else 0
