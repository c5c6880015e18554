"""Which rows of a shard have changed since a checkpoint: found by comparing, so that a training step pays nothing.

A row changes by being met, which counts, by an update, which notes its step, and by the passes of eviction, which halve
counts. So one with the count that it had, and no update since, is bit for bit what it was. What is no more in the shard
is noted when it goes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.rows.slab import Slab

_BLOCK = 1 << 16


class Changes:
    """What a shard was at one moment: 4 bytes for each slot, and 8 for each row that was dropped since.

    Args:
        counts: int32 [slots], of the shard now.
        step: of its latest update.

    Attributes:
        counts: of then, and 1 more, by slot as they are now: it grows (0: there was no row) and moves with the shard's
            other slabs.
    """

    def __init__(self, counts: NDArray[np.int32], step: int) -> None:
        self._step = step
        self._dropped: list[Int64Array] = []
        self.counts = Slab(len(counts), (), torch.int32)
        for start in range(0, len(counts), _BLOCK):
            some = counts[start : start + _BLOCK]
            if some.any():  # zeros that were never written take no memory
                self.counts.memory[start : start + _BLOCK] = some + 1

    def drop(self, keys: Int64Array) -> None:
        """These keys have no row any more."""
        self._dropped.append(keys)

    @property
    def dropped(self) -> Int64Array:
        """Keys that had no row at some moment since, ascending. Some may have one again."""
        keys = np.unique(np.concatenate(self._dropped)) if self._dropped else np.empty(0, dtype=np.int64)
        self._dropped = [keys]
        return keys

    def among(self, slots: Int64Array, counts: NDArray[np.int32], last_step: NDArray[np.int32]) -> BoolArray:
        """Which rows are not what they were.

        Args:
            slots: int64 [n], of rows.
            counts, last_step: int32 [slots], of the shard.

        Returns: bool [n].
        """
        changed: BoolArray = counts.take(slots) + 1 != self.counts.memory.take(slots)
        changed |= last_step.take(slots) > self._step
        return changed
