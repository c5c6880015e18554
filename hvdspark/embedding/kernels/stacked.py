"""Vectors side by side, [batch, columns, D], as models read them: taken from rows, and their gradients summed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.kernels import sums
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, choose, function

# A stack that is larger is not in a core's cache any more when somebody reads it: it is written past the caches.
_CACHED_BYTES = 1 << 22


class _Stack(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("distance", ctypes.c_int64),
        ("columns", ctypes.c_void_p),
        ("fields", ctypes.c_int64),
        ("numbers", ctypes.c_void_p),
        ("limits", ctypes.c_void_p),
    )


_take = function("kernels_take_stacked", [ADDRESS, ADDRESS, ADDRESS, INTEGER], INTEGER)
_sum = function("kernels_sum_stacked", [ADDRESS, ADDRESS, ADDRESS], INTEGER)


def take_reference(rows: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
    """Vectors of all fields side by side: column f is rows[f][numbers[f]].

    Args:
        rows: of each field, at least one; float32 [rows of the field, D].
        numbers: of each field, int64 [batch].

    Returns: float32 [batch, fields, D].

    Raises:
        IndexError: a number is out of range.
    """
    stack = rows[0].new_empty(len(numbers[0]), len(rows), rows[0].shape[1])
    for column, (some, index) in enumerate(zip(rows, numbers, strict=True)):
        torch.index_select(some, 0, index, out=stack[:, column])
    return stack


def take_compiled(rows: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
    """`take_reference`, written as it lies."""
    if rows[0].dtype != torch.float32:
        return take_reference(rows, numbers)
    rows = [some.contiguous() for some in rows]
    stack = rows[0].new_empty(len(numbers[0]), len(rows), rows[0].shape[1])
    _each_place(_take, stack, range(len(rows)), numbers, rows, stack.nbytes > _CACHED_BYTES)
    return stack


def sum_reference(stack: Tensor, columns: Sequence[int], numbers: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """Add vectors of a stack to rows: totals[f][numbers[f][b]] += stack[b, columns[f]], in the order of b.

    Args:
        stack: float32 [batch, all columns, D].
        columns: of the fields.
        numbers: of each field, int64 [batch]. No two fields have one row in common.
        totals: of each field, maybe one tensor for several; zeros of float32 [rows of the field, D].

    Raises:
        IndexError: a number or a column is out of range.
    """
    for column, index, total in zip(columns, numbers, totals, strict=True):
        total += sums.reference(stack[:, column], index, len(total))


def sum_compiled(stack: Tensor, columns: Sequence[int], numbers: Sequence[Tensor], totals: Sequence[Tensor]) -> None:
    """`sum_reference`, in one pass over the stack."""
    if stack.dtype != torch.float32 or not all(total.is_contiguous() for total in totals):
        sum_reference(stack, columns, numbers, totals)
        return
    _each_place(_sum, _lying_together(stack), columns, numbers, totals)


take_stacked = choose(take_compiled, take_reference)
sum_stacked = choose(sum_compiled, sum_reference)


def _each_place(
    work: Any, stack: Tensor, columns: Sequence[int], numbers: Sequence[Tensor], rows: Sequence[Tensor], *more: int
) -> None:
    """Call a kernel on a stack and the rows of each field; IndexError where a number or a column is out of range."""
    batch, width, dim = stack.shape
    numbers = [index.contiguous() for index in numbers]
    if {index.dtype for index in numbers} - {torch.int64} or {some.dtype for some in rows} - {torch.float32}:
        raise TypeError("numbers are int64, rows float32")
    if {len(index) for index in numbers} - {batch} or {some.shape[1] for some in rows} - {dim}:
        raise IndexError(f"numbers or rows that are not those of a stack {tuple(stack.shape)}")
    if columns and not 0 <= min(columns) <= max(columns) < width:
        raise IndexError(f"columns {list(columns)} of {width}")
    arrays = [
        np.array(columns, dtype=np.int64),
        np.array([index.data_ptr() for index in numbers], dtype=np.uint64),
        np.array([len(some) for some in rows], dtype=np.int64),
        np.array([some.data_ptr() for some in rows], dtype=np.uint64),
    ]
    column, number, limit, row = (array.ctypes.data for array in arrays)
    described = _Stack(batch, dim, stack.stride(0), column, len(rows), number, limit)
    if not work(ctypes.byref(described), row, stack.data_ptr(), *more):
        raise IndexError(f"numbers out of range: of rows {[len(some) for some in rows]}")


def _lying_together(stack: Tensor) -> Tensor:
    """The stack, or a copy, whose rows of one batch row lie together.

    Often it is a slice of a wider tensor, that of a `torch.cat`, and is read where it lies.
    """
    apart = stack.stride()[1:] == (stack.shape[2], 1) and stack.stride(0) >= stack.shape[1] * stack.shape[2]
    return stack if apart else stack.contiguous()
