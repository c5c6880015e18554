"""Where rows begin: a counter-based generator, so a row is the same whoever makes it, when, and with which others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.config import Initialization
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.kernels.initial import chunk_of, random_bits, uniform


def initial_rows(keys: Tensor, dim: int, seed: int, salt: int, init: Initialization) -> Tensor:
    """Initial rows of some ids of one table.

    A row depends on (seed, salt, id) alone: the same bits for any order, batch and number of ranks. Element pair j of a
    row comes from output j of a splitmix64 stream that is seeded by the row's own hash.

    Args:
        keys: ids of the table, int64 [n].
        dim: columns.
        seed: of the model.
        salt: of the table, in [0, 2**64), see `hashing.salt_of`.

    Returns: float32 [n, dim].
    """
    rows = np.zeros((len(keys), dim), dtype=np.float32)
    dim -= init.zero_last
    if init.distribution == "zeros":
        return torch.from_numpy(rows)
    ids, table_hash = keys.detach().numpy(), np.uint64(salt_of("initial rows", seed, salt))
    if init.distribution == "uniform":
        uniform(ids, table_hash, init.scale, rows[:, :dim])
        return torch.from_numpy(rows)
    for start in range(0, len(ids), chunk_of(dim)):
        some = slice(start, start + chunk_of(dim))
        rows[some, :dim] = _normal(random_bits(ids[some], table_hash, dim), init.scale)[:, :dim]
    return torch.from_numpy(rows)


def _normal(bits: NDArray[np.uint32], scale: float) -> NDArray[np.float64]:
    """Box and Muller, 1958, in float64: rounding to float32 hides the last bit of other processors' logarithms."""
    radius = np.sqrt(-2.0 * np.log((bits[:, 0::2] + 0.5) / 2.0**32)) * scale
    angle = bits[:, 1::2] * (2.0 * np.pi / 2.0**32)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=2).reshape(bits.shape)
