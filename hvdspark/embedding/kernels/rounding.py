"""Stochastic rounding of float32 rows to 16 bits, so that updates smaller than half a step are not lost."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Bits of a float32's 23-bit mantissa that the narrow type drops.
_DROPPED_BITS = {torch.bfloat16: 16, torch.float16: 13}


def stochastic_round(values: Tensor, dtype: torch.dtype, step: int) -> Tensor:
    """Round to one of the two neighbours with a probability that keeps the mean (Gupta and others: ICML 2015).

    The randomness is a hash of the value's own bits, its place in the row and the step: equal values are rounded
    alike on any number of ranks. (Values that differ in their last bit are not, so narrow rows of two runs may be a
    step of their type apart where float32 rows would agree to 1e-5.) float16 rounds to nearest below its normal range
    (6e-5); infinities and NaN stay what they are.

    Args:
        values: float32 [n, D].
        dtype: torch.bfloat16 or torch.float16.

    Returns: `dtype` [n, D].
    """
    bits = values.contiguous().numpy().view(np.uint32)
    columns = np.arange(bits.shape[1], dtype=np.uint32) * np.uint32(0x85EBCA6B)
    # A hash of 32 bits with low bias: C. Wellons, hash-prospector.
    noise = bits ^ (columns + np.uint32((step * 0x9E3779B9) & 0xFFFFFFFF))
    noise ^= noise >> np.uint32(16)
    noise *= np.uint32(0x7FEB352D)
    noise ^= noise >> np.uint32(15)
    noise *= np.uint32(0x846CA68B)
    noise >>= np.uint32(32 - _DROPPED_BITS[dtype])
    noise += bits
    noise &= np.uint32((0xFFFFFFFF << _DROPPED_BITS[dtype]) & 0xFFFFFFFF)
    finite = np.isfinite(values.numpy())
    rounded = noise if finite.all() else np.where(finite, noise, bits)
    return torch.from_numpy(rounded.view(np.float32)).to(dtype)
