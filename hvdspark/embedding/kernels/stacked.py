"""Sums of the gradients of vectors that lie side by side, feature by feature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.kernels import sums
from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function

_sum = function("kernels_sum_stacked", [ADDRESS, INTEGER, ADDRESS, INTEGER, ADDRESS, INTEGER, INTEGER, ADDRESS])


def sum_reference(stack: Tensor, numbers: Tensor, columns: Sequence[int], count: int) -> Tensor:
    """Sums of the rows of a stack that have the same number, field by field, as `sums.reference` adds them.

    Args:
        stack: float32 [batch, all columns, D]; rows of one batch lie together, batches maybe apart.
        numbers: int64 [fields * batch], field by field, in [0, count).
        columns: of the fields.

    Returns: float32 [count, D].
    """
    return sums.reference(*_places(stack, numbers, columns, count))


def sum_compiled(stack: Tensor, numbers: Tensor, columns: Sequence[int], count: int) -> Tensor:
    """`sum_reference`, reading the stack as it lies.

    Raises:
        IndexError: a number or column is out of range.
    """
    batch, width, dim = stack.shape
    if len(numbers) != len(columns) * batch or (columns and not 0 <= min(columns) <= max(columns) < width):
        raise IndexError(f"{len(numbers)} numbers for columns {columns} of {width} and a batch of {batch}")
    if batch and stack.dtype == torch.float32 and _are_apart(numbers.view(len(columns), batch)):
        stack, numbers = _lying_together(stack), numbers.contiguous()
        sums.check_indexes(numbers, count)
        of_fields = np.array(columns, dtype=np.int64)
        total = stack.new_zeros(count, dim)
        _sum(
            stack.data_ptr(),  # not contiguous, but as `_lying_together` says
            dim,
            address(numbers.numpy(), np.int64),
            batch,
            address(of_fields, np.int64),
            len(columns),
            stack.stride(0) // dim,
            address(total.numpy(), np.float32),
        )
        return total
    return sums.sum_rows(*_places(stack, numbers, columns, count))


sum_stacked = choose(sum_compiled, sum_reference)


def _lying_together(stack: Tensor) -> Tensor:
    """The stack, or a copy, whose rows of one batch lie together and begin a whole number of rows apart.

    Often it is a slice of a wider tensor, that of a `torch.cat`, and is read where it lies.
    """
    dim = stack.shape[2]
    apart = stack.stride()[1:] == (dim, 1) and stack.stride(0) % dim == 0 and stack.stride(0) >= dim * stack.shape[1]
    return stack if apart else stack.contiguous()


def _places(stack: Tensor, numbers: Tensor, columns: Sequence[int], count: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """What `sums` wants to know."""
    stack = _lying_together(stack)
    batch, width, dim = stack.shape
    distance = stack.stride(0) // dim
    spanned = (batch - 1) * distance + width if batch else 0
    firsts = torch.arange(batch) * distance
    places = torch.cat([firsts + column for column in columns])
    return stack.as_strided((spanned, dim), (dim, 1), stack.storage_offset()), numbers, count, places


def _are_apart(fields: Tensor) -> bool:
    """Whether no two fields have a number in common, seen from the range of each. int64 [fields, batch]."""
    least, most = fields.aminmax(dim=1)
    order = least.argsort()
    return bool((most[order][:-1] < least[order][1:]).all())
