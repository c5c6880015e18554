"""Continuous columns as inputs of a network: offset and scale are removed in float64, before anything is float32."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = ("log", "linear_and_log")
# Up to here a standardised number enters as it is, beyond it by its logarithm: an outlier is not 100 usual rows.
_LINEAR_UP_TO = 4.0


def width(numbers: int, shape: str) -> int:
    """Inputs that stand for so many numbers."""
    return numbers if shape == "log" else 2 * numbers


def dtype(shape: str) -> torch.dtype:
    """In which offset and scale are removed. "log" is how models were made before there was a choice: in float32."""
    return torch.float32 if shape == "log" else torch.float64


def inputs(numbers: Tensor, shape: str) -> Tensor:
    """What is to be standardised; [rows, N] -> [rows, N] for "log", [rows, 2 N] for "linear_and_log", same dtype.

    The second half, or all of "log", is sign(x) log(1 + |x|): amounts and counts matter by their order of magnitude.
    """
    logged = numbers.sign() * numbers.abs().log1p()
    return logged if shape == "log" else torch.cat([numbers, logged], dim=1)


def standardised(numbers: Tensor, shape: str, mean: Tensor, deviation: Tensor) -> Tensor:
    """What the network takes: float32 [rows, width], 0 where missing.

    Args:
        numbers: NaN where missing; float [rows, N].
        mean, deviation: of `inputs` over the training rows, `dtype(shape)` [width]. A deviation of infinity makes an
            input 0.
    """
    scaled = (inputs(numbers.to(mean.dtype), shape) - mean) / deviation
    scaled = scaled.masked_fill(scaled.isnan(), 0.0)
    if shape == "log":
        return scaled
    size = scaled.abs()
    beyond = (size - _LINEAR_UP_TO).clamp_min(0.0)
    return (scaled.sign() * (size - beyond + beyond.log1p())).float()
