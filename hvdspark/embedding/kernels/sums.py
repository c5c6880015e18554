"""Sums of the rows that belong together."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hvdspark.embedding.kernels.library import ADDRESS, INTEGER, address, choose, function

_sum = function("kernels_sum", [ADDRESS, ADDRESS, ADDRESS, INTEGER, INTEGER, ADDRESS])


def reference(values: Tensor, numbers: Tensor, count: int, places: Tensor | None = None) -> Tensor:
    """Sum of the rows of each number, beginning with 0, in the order in which they come.

    Args:
        values: float32 [N, D].
        numbers: int64 [L] in [0, count).
        places: int64 [L] in [0, N): row values[places[l]] has the number numbers[l]. None: L = N, and it is values[l].

    Returns: float32 [count, D]; zeros for a number that does not occur.
    """
    if not count or not len(numbers):
        return values.new_zeros(count, values.shape[1])
    order = torch.from_numpy(np.argsort(numbers.numpy(), kind="stable"))
    lengths = torch.bincount(numbers, minlength=count)
    rows = order if places is None else places.index_select(0, order)
    return F.embedding_bag(rows, values, lengths.cumsum(0) - lengths, mode="sum")


def compiled(values: Tensor, numbers: Tensor, count: int, places: Tensor | None = None) -> Tensor:
    """`reference`, with no order of the numbers: each row is added where it belongs as it comes.

    Raises:
        IndexError: a number or place is out of range.
    """
    values, numbers = values.contiguous(), numbers.contiguous()
    places = None if places is None else places.contiguous()
    if len(numbers) != len(values if places is None else places):
        raise IndexError(f"{len(numbers)} numbers for {len(values if places is None else places)} rows")
    check_indexes(numbers, count)
    if places is not None:
        check_indexes(places, len(values))
    sums = values.new_zeros(count, values.shape[1])
    _sum(
        address(values.numpy(), np.float32),
        None if places is None else address(places.numpy(), np.int64),
        address(numbers.numpy(), np.int64),
        len(numbers),
        values.shape[1],
        address(sums.numpy(), np.float32),
    )
    return sums


def check_indexes(indexes: Tensor, limit: int) -> None:
    """IndexError unless all are in [0, limit)."""
    if len(indexes):
        least, most = (int(bound) for bound in indexes.aminmax())
        if least < 0 or most >= limit:
            raise IndexError(f"indexes from {least} to {most} of {limit} rows")


sum_rows = choose(compiled, reference)
