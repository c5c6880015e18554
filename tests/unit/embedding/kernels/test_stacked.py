from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvdspark.embedding.kernels import stacked

ALL_COLUMNS = 5
SHAPES = [(0, 3, 4), (1, 1, 1), (3, 1, 16), (50, 3, 17), (700, 5, 16), (33, 2, 8), (40, 4, 32), (17, 3, 50)]


def numbers_of(fields: int, batch: int, count: int, *, apart: bool) -> Tensor:
    numbers = torch.randint(0, count, (fields, batch))
    return (numbers + count * torch.randperm(fields).unsqueeze(1) if apart else numbers).flatten()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("layout", ["together", "slice of a wider one", "transposed", "expanded"])
@pytest.mark.parametrize(("batch", "fields", "dim"), SHAPES)
def test_compiled_sum_is_reference(batch: int, fields: int, dim: int, layout: str, apart: bool) -> None:
    stack = torch.randn(batch, ALL_COLUMNS, dim) * 10.0 ** torch.randint(-6, 6, (batch, 1, 1))
    if layout == "slice of a wider one":
        stack = torch.cat([stack, stack], dim=1)[:, 2 : 2 + ALL_COLUMNS]
    elif layout == "transposed":
        stack = torch.randn(batch, dim, ALL_COLUMNS).transpose(1, 2)
    elif layout == "expanded":
        stack = stack[:, :, :1].expand(batch, ALL_COLUMNS, dim)
    columns = torch.randperm(ALL_COLUMNS)[:fields].tolist()
    numbers = numbers_of(fields, batch, 30, apart=apart)
    expected = stacked.sum_reference(stack, numbers, columns, 30 * fields)
    found = stacked.sum_compiled(stack, numbers, columns, 30 * fields)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize(("numbers", "columns"), [([0, 9], [0]), ([-1, 0], [0]), ([0, 1], [5]), ([0, 1, 2], [0])])
def test_nothing_outside_is_read_or_written(numbers: list[int], columns: list[int]) -> None:
    stack = torch.zeros(2, ALL_COLUMNS, 4)
    with pytest.raises(IndexError):
        stacked.sum_compiled(stack, torch.tensor(numbers), columns, 9)
