"""Where rows begin: a counter-based generator, so a row is the same whoever makes it, when, and with which others."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.config import Initialization
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.kernels.mixing import mix

# Work memory stays in a core's cache: 2**15 counters of 8 bytes.
_CHUNK_COUNTERS = 1 << 15
_STREAM_STEP = np.uint64(0x9E3779B97F4A7C15)


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
    make = _uniform if init.distribution == "uniform" else _normal
    ids = keys.detach().numpy()
    table_hash = np.uint64(salt_of("initial rows", seed, salt))
    counters = np.arange((dim + 1) // 2, dtype=np.uint64) * _STREAM_STEP
    chunk = max(1, _CHUNK_COUNTERS // len(counters))
    for start in range(0, len(ids), chunk):
        row_hash = mix(ids[start : start + chunk].astype(np.uint64) ^ table_hash)
        bits = mix(row_hash[:, None] + counters).view(np.uint32)
        rows[start : start + chunk, :dim] = make(bits, init.scale)[:, :dim]
    return torch.from_numpy(rows)


def _uniform(bits: NDArray[np.uint32], scale: float) -> NDArray[np.float32]:
    """[-scale, scale) on 2**24 steps: exactly what a float32 can hold."""
    return (bits >> np.uint32(8)).astype(np.float32) * np.float32(2 * scale / (1 << 24)) - np.float32(scale)


def _normal(bits: NDArray[np.uint32], scale: float) -> NDArray[np.float64]:
    """Box and Muller, 1958, in float64: rounding to float32 hides the last bit of other processors' logarithms."""
    radius = np.sqrt(-2.0 * np.log((bits[:, 0::2] + 0.5) / 2.0**32)) * scale
    angle = bits[:, 1::2] * (2.0 * np.pi / 2.0**32)
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=2).reshape(bits.shape)
