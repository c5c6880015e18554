"""Files of rows that have changed, on their way back: what newer ones have said, older ones are not asked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array

_WAITING = ("waiting_ids", "waiting_counts", "waiting_ages")
_DROPPED = "dropped_ids"


class Newer:
    """What the files have said that were read so far, the newest first: 8 bytes for each id of the files of changes.

    Args:
        newest: number of the newest files. They alone say which ids wait for admission, and they say all of them.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._known: dict[str, Int64Array] = {}
        self._of_this: dict[str, list[Int64Array]] = {}
        self._number = newest

    def left(self, table: str, tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Of one file's tensors of a table, by their names there, what no newer file has said otherwise.

        Args:
            number: of the file, in descending order from call to call.
        """
        if number < self._number:
            self._number = number
            for name, told in self._of_this.items():
                self._known[name] = np.unique(np.concatenate([*told, self._known.get(name, told[0][:0])]))
            self._of_this.clear()
        found = dict(tensors)
        if not found:
            return found
        ids, dropped = found["ids"].numpy(), found.pop(_DROPPED, None)
        if number:
            self._of_this.setdefault(table, []).append(ids)
            if dropped is not None:
                self._of_this[table].append(dropped.numpy())
        if number < self._newest:
            found |= {name: found[name][:0] for name in _WAITING if name in found}
        known = self._known.get(table)
        if known is None or not len(known) or not len(ids):
            return found
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        kept = torch.from_numpy(known[places] != ids)
        return {name: tensor if name in _WAITING else tensor[kept] for name, tensor in found.items()}
