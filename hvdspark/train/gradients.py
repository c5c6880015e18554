"""Gradients as numbers: dense, sparse, or complex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class WithoutGradient(torch.autograd.Function):
    """A tensor as it is, whose gradient is 0 whatever comes back: also where NaN or infinity does."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Square of the L2 norm of all tensors together."""
    norms = [torch.linalg.vector_norm(values_of(tensor)).double() for tensor in tensors]
    return torch.stack(norms).square().sum().item() if norms else 0.0


def sums_of(tensors: Sequence[Tensor]) -> list[float]:
    """The sum of each tensor's elements; of what is complex, of both parts."""
    return torch.stack([values_of(tensor).sum().float() for tensor in tensors]).tolist() if tensors else []


def all_finite(sums: list[float], tensors: Sequence[Tensor]) -> bool:
    """Whether every element of the tensors is finite, given what `sums_of` says of them."""
    # A sum reads each number once and keeps every NaN and infinity; only its own overflow needs a second look.
    return math.isfinite(sum(sums)) or all(bool(torch.isfinite(values_of(tensor)).all()) for tensor in tensors)


def values_of(gradient: Tensor) -> Tensor:
    """The numbers of a gradient: of a sparse one those of its rows, of a complex one both parts."""
    # Rows that several ranks or batches touched are listed several times until they are coalesced.
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values) if values.is_complex() else values


def sparse_rows(parameter: nn.Parameter, count: int, value: float) -> Tensor:
    """A sparse gradient that says `value` for the first `count` rows and nothing of the others.

    Nothing is not the same as 0: SparseAdam moves every row that is listed, by its momentum.
    """
    rows = torch.arange(count, device=parameter.device).unsqueeze(0)
    values = torch.full((count, *parameter.shape[1:]), value, dtype=parameter.dtype, device=parameter.device)
    return torch.sparse_coo_tensor(rows, values, parameter.shape, check_invariants=False)
