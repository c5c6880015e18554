"""The ids of one feature for a batch of rows, in whatever form they come, and how rows of a table become its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hvdspark.embedding.dedup import Unique, sum_equal
from hvdspark.errors import DataError, SchemaError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Cells:
    """One feature of a batch.

    Attributes:
        ids: int64 [n], on the CPU, of all rows one after the other.
        shape: of the output without its last dimension, which is the table's.
        pooling: "none" (then n = product of shape) | "sum" | "mean" (then shape is [rows]).
        offsets: int64 [rows + 1], row i has ids[offsets[i] : offsets[i + 1]]; None without pooling.
    """

    ids: Tensor
    shape: tuple[int, ...]
    pooling: str
    offsets: Tensor | None


def cells_of(value: Any, pooling: str, feature: str) -> Cells:
    """Read a feature.

    Args:
        value: an integer tensor [rows] or [rows, k], or values [n] and offsets int64 [rows + 1], as a tuple or as
            attributes of an object (a `Ragged`).
        pooling: of the table.

    Raises:
        SchemaError: something else.
        DataError: offsets that do not fit the values.
    """
    where = f"feature {feature!r}"
    if isinstance(value, Tensor):
        ids = _integers(value, where)
        if ids.dim() not in (1, 2):
            raise SchemaError("ids come as [rows] or [rows, k]", value=tuple(ids.shape), where=where)
        if pooling == "none":
            return Cells(ids.reshape(-1), tuple(ids.shape), pooling, None)
        rows, width = len(ids), ids.shape[1] if ids.dim() == 2 else 1
        return Cells(ids.reshape(-1), (rows,), pooling, torch.arange(rows + 1) * width)
    if isinstance(value, tuple) and len(value) == 2:
        ids, offsets = value
    elif hasattr(value, "values") and hasattr(value, "offsets"):
        ids, offsets = value.values, value.offsets
    else:
        raise SchemaError("ids are neither a tensor nor values and offsets", value=type(value).__name__, where=where)
    ids, offsets = _integers(ids, where), _integers(offsets, f"offsets of {where}")
    if pooling == "none":
        raise SchemaError(
            "rows of different lengths need pooling", where=where, hint="set pooling='sum' or 'mean' in its TableConfig"
        )
    if ids.dim() != 1 or offsets.dim() != 1:
        raise SchemaError("values and offsets are vectors", value=(tuple(ids.shape), tuple(offsets.shape)), where=where)
    ends = offsets[[0, -1]].tolist() if len(offsets) else []
    if ends != [0, len(ids)] or bool((offsets[1:] < offsets[:-1]).any()):
        raise DataError(
            "offsets must rise from 0 to the number of values", value=f"{ends} for {len(ids)} values", where=where
        )
    return Cells(ids, (len(offsets) - 1,), pooling, offsets)


def outputs(rows: Tensor, index: Tensor, cells: Cells) -> Tensor:
    """A feature's output from a table's rows: [U, D], int64 [n] -> [*cells.shape, D]. Empty bags give zeros."""
    if cells.offsets is None:
        return F.embedding(index, rows).view(*cells.shape, rows.shape[1])
    return F.embedding_bag(index, rows, cells.offsets, mode=cells.pooling, include_last_offset=True)


def take(rows: Tensor, distinct: Unique, cells: Sequence[Cells]) -> tuple[Tensor, ...]:
    """Outputs of all features of a group from its distinct rows, differentiable in `rows`.

    Bit for bit what `outputs`, and so `nn.Embedding` and `nn.EmbeddingBag`, give; but the backward pass uses the sort
    that found the distinct keys, where torch's own sorts again.

    Args:
        rows: float32 [U, D].
        distinct: of the ids of all cells, one feature after the other.
    """
    return _Take.apply(rows, distinct, tuple(cells))


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, distinct: Unique, cells: tuple[Cells, ...]) -> tuple[Tensor, ...]:
        ctx.distinct, ctx.cells = distinct, cells
        parts = distinct.inverse.split([len(feature.ids) for feature in cells])
        return tuple(outputs(rows, index, feature) for index, feature in zip(parts, cells, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        parts = [_of_each_id(gradient, cells) for gradient, cells in zip(gradients, ctx.cells, strict=True)]
        return sum_equal(torch.cat(parts), ctx.distinct), None, None


def _of_each_id(gradient: Tensor, cells: Cells) -> Tensor:
    """[*shape, D] -> [n, D]"""
    if cells.offsets is None:
        return gradient.reshape(-1, gradient.shape[-1])
    lengths = cells.offsets.diff()
    if cells.pooling == "mean":
        gradient = gradient / lengths.clamp(min=1).unsqueeze(1)
    return gradient.repeat_interleave(lengths, dim=0)


def _integers(value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in _INTEGERS:
        raise SchemaError(
            "ids must be integers",
            value=str(value.dtype) if isinstance(value, Tensor) else type(value).__name__,
            where=where,
            hint="large ids do not survive a float tensor: keep the column int64 from its source on",
        )
    return value.detach().to("cpu", torch.int64)
