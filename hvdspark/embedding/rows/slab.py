"""Memory for rows: an array that grows in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.arrays import NUMPY_DTYPES, BoolArray, Int64Array


class Slab:
    """Rows of one dtype and shape, zeros at first, whose number can change.

    A new slab takes address space only: the system gives zeroed memory to a page when it is first written. Growing is
    `realloc`, which on Linux moves pages of a large block instead of copying them, so that memory is never doubled.
    What grew is written, unlike what was there at first.

    Attributes:
        memory: the rows; `resize` leaves views of it dangling, so nobody keeps one.
    """

    def __init__(self, rows: int, row_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.dtype, self.row_shape = dtype, row_shape
        self.memory: NDArray[Any] = np.zeros((rows, *row_shape), dtype=NUMPY_DTYPES[dtype])
        self._row = np.dtype((np.void, self.memory.itemsize * math.prod(row_shape)))

    def __len__(self) -> int:
        return len(self.memory)

    def resize(self, rows: int) -> None:
        """Keep the first rows; new ones are zeros."""
        self.memory.resize((rows, *self.row_shape), refcheck=False)

    # numpy moves rows by index on one thread in a third of the time that torch takes on two.
    def take(self, slots: Int64Array) -> Tensor:
        """Copy of some rows: [n, *row_shape]."""
        return torch.from_numpy(self.memory.take(slots, axis=0)).view(self.dtype)

    def put(self, slots: Int64Array, rows: Tensor) -> None:
        """Overwrite some rows (each at most once) with [n, *row_shape] of the slab's dtype."""
        values = rows.view(torch.int16).numpy() if self.dtype == torch.bfloat16 else rows.numpy()
        if self.row_shape:
            # A row as one item: a quarter faster than element by element.
            self.memory.view(self._row)[slots] = np.ascontiguousarray(values).view(self._row)
        else:
            self.memory[slots] = values

    def move_up(self, first: int, kept: BoolArray) -> None:
        """Close the gaps among the rows from `first` on: row first + i stays where kept[i], in the same order."""
        target = first
        for start in range(0, len(kept), _MOVED_ROWS):
            chosen = kept[start : start + _MOVED_ROWS]
            rows = self.memory[first + start : first + start + len(chosen)][chosen]
            self.memory[target : target + len(rows)] = rows
            target += len(rows)

    @property
    def row_bytes(self) -> int:
        return self._row.itemsize

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes


_MOVED_ROWS = 1 << 16
