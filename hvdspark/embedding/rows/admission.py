"""Ids that were met too rarely to have a row yet."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.rows.key_index import KeyIndex
from hvdspark.embedding.rows.slab import Slab


class WaitingKeys:
    """Exact counts of occurrences of keys that wait for admission: about 25 bytes for each."""

    def __init__(self) -> None:
        self._index = KeyIndex()
        self._counts = Slab(0, (), torch.int32)  # 0: admitted meanwhile; the entry counts again if the row is evicted
        self._ages = Slab(0, (), torch.int32)  # calls of `forget` for the key's table since its last sighting

    def __len__(self) -> int:
        """Entries, those of keys that were admitted included."""
        return len(self._index)

    def knows(self, keys: Int64Array) -> BoolArray:
        """Which of some keys have an entry."""
        return self._index.find(keys) >= 0

    def sight(self, keys: Int64Array, least: Int64Array, times: Int64Array | None = None) -> Int64Array:
        """Count more sightings of unique keys.

        Args:
            least: for each key the count that admits it.
            times: for each key how often it was met since the last call, >= 1; None: once.

        Returns: int64 [n], the count of keys that are admitted now (and wait no longer), 0 for all others.
        """
        places = self._places(keys)
        counts = self._counts.memory[places].astype(np.int64) + (1 if times is None else times)
        admitted = counts >= least
        self._counts.memory[places] = np.where(admitted, 0, counts)
        self._ages.memory[places] = 0
        return np.where(admitted, counts, 0)

    def forget(self, keys: BoolArray) -> None:
        """Drop keys whose entry of `keys` (as in `all_keys`) is True, where they were not sighted since it last was.

        So the keys of a table do not age by what is forgotten of other tables.
        """
        kept = self._counts.memory[: len(self._index)] > 0
        kept &= (self._ages.memory[: len(self._index)] == 0) | ~keys
        self._ages.memory[: len(self._index)] += keys
        self._index.keep(kept)
        for slab in (self._counts, self._ages):
            slab.move_up(0, kept)
            slab.resize(len(self._index))

    @property
    def all_keys(self) -> Int64Array:
        """Every key that has an entry, for `forget`; a view."""
        return self._index.keys

    def waits(self, places: Int64Array) -> BoolArray:
        """Which of the keys `all_keys[places]` wait; the others were admitted."""
        return self._counts.memory[places] > 0

    def entries(self, places: Int64Array) -> tuple[Int64Array, NDArray[np.int32], NDArray[np.int32]]:
        """(keys, counts, calls of `forget` for their table since the last sighting) as copies."""
        return self._index.keys[places], self._counts.memory[places], self._ages.memory[places]

    def restore(self, keys: Int64Array, counts: NDArray[np.int32], ages: NDArray[np.int32]) -> None:
        """Put back unique keys, as `entries` gave them."""
        places = self._places(keys)
        self._counts.memory[places] = counts
        self._ages.memory[places] = ages

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._counts.nbytes + self._ages.nbytes

    def _places(self, keys: Int64Array) -> Int64Array:
        places = self._index.find(keys)
        new = places < 0
        if new.any():
            places[new] = self._index.insert(keys[new])
            needed = len(self._index)
            if needed > len(self._counts):
                for slab in (self._counts, self._ages):
                    slab.resize(needed + needed // 8)
        return places
