"""A hash index from int64 keys to consecutive places 0, 1, 2, ..., worked by whole arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.kernels import index

_MAX_LOAD = 0.6
_MAX_KEYS = (1 << 31) - 1
_FIRST_CELLS = 1 << 10
_CHUNK = 1 << 16
_SPARE = 8  # arrays grow by 1/8: what they hold too much stays below that


class KeyIndex:
    """Open addressing with linear probing. A cell holds the place of a key; keys lie in `keys[place]`.

    Its loops are those of `kernels.index`. Memory: 8 bytes for each key and 4 for each cell, with 1.7 to 3.3 cells for
    each key.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._size = 0
        self._cells = np.full(_FIRST_CELLS, -1, dtype=np.int32)

    def __len__(self) -> int:
        return self._size

    @property
    def keys(self) -> Int64Array:
        """The keys by place; a view that the next `insert` or `keep` invalidates."""
        return self._keys[: self._size]

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._cells.nbytes

    @staticmethod
    def bytes_for(size: int) -> int:
        """The most that an index of so many keys takes."""
        return 8 * (size + size // _SPARE) + 4 * _cells_for(size)

    def find(self, keys: Int64Array, counts: NDArray[np.int32] | None = None) -> Int64Array:
        """Place of every key, -1 where there is none. int64 [n] -> int64 [n].

        Args:
            keys: each at most once where there are counts.
            counts: int32 [at least len(self)], by place: one more for each key that is found.
        """
        if self._size == 0:
            return np.full(len(keys), -1, dtype=np.int64)
        return index.find(self._cells, self.keys, keys, counts)

    def insert(self, keys: Int64Array) -> Int64Array:
        """Add keys that are unique and not there yet; their places follow the last one. int64 [n] -> int64 [n]."""
        first, stop = self._size, self._size + len(keys)
        if stop > _MAX_KEYS:
            raise OverflowError(f"{stop} keys: one index holds at most {_MAX_KEYS}; use more ranks")
        if stop > len(self._keys):
            self._keys.resize(stop + stop // _SPARE, refcheck=False)
        self._keys[first:stop] = keys
        self._size = stop
        if stop > _MAX_LOAD * len(self._cells):
            self._rebuild()
        else:
            index.place(self._cells, self._keys, first, stop)
        return np.arange(first, stop)

    def keep(self, kept: BoolArray) -> None:
        """Drop the keys whose entry of `kept` (bool [len]) is False; the others move up and keep their order."""
        size = 0
        for start in range(0, self._size, _CHUNK):
            stop = min(start + _CHUNK, self._size)
            some = self._keys[start:stop][kept[start:stop]]
            self._keys[size : size + len(some)] = some
            size += len(some)
        self._keys.resize(size, refcheck=False)
        self._size = size
        self._rebuild()

    def _rebuild(self) -> None:
        self._cells = np.empty(0, dtype=np.int32)  # the old ones go before the new ones come
        self._cells = np.full(_cells_for(self._size), -1, dtype=np.int32)
        for start in range(0, self._size, _CHUNK):
            index.place(self._cells, self._keys, start, min(start + _CHUNK, self._size))


def _cells_for(size: int) -> int:
    """A power of two."""
    needed = max(_FIRST_CELLS, int(size / _MAX_LOAD) + 1)
    return 1 << (needed - 1).bit_length()
