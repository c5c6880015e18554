from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hvdspark.embedding.kernels import stacked

ALL_COLUMNS = 5
SHAPES = [(0, 3, 4), (1, 1, 1), (3, 1, 16), (50, 3, 17), (700, 5, 16), (33, 2, 8), (40, 4, 32), (17, 3, 50)]
# A multiple of no block of batch rows or fields; and more bytes than are kept in a cache.
MANY = [(13, 150, 3), (3001, 27, 17), (2500, 30, 16)]


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


def numbers_of(fields: int, batch: int, count: int) -> list[Tensor]:
    return [torch.randint(0, count, (batch,)) for _ in range(fields)]


@pytest.mark.parametrize("layout", ["together", "slice of a wider one", "transposed", "expanded"])
@pytest.mark.parametrize(("batch", "fields", "dim"), SHAPES)
def test_compiled_sum_is_reference(batch: int, fields: int, dim: int, layout: str) -> None:
    stack = torch.randn(batch, ALL_COLUMNS, dim) * 10.0 ** torch.randint(-6, 6, (batch, 1, 1))
    if layout == "slice of a wider one":
        stack = torch.cat([stack, stack], dim=1)[:, 2 : 2 + ALL_COLUMNS]
    elif layout == "transposed":
        stack = torch.randn(batch, dim, ALL_COLUMNS).transpose(1, 2)
    elif layout == "expanded":
        stack = stack[:, :, :1].expand(batch, ALL_COLUMNS, dim)
    columns = torch.randperm(ALL_COLUMNS)[:fields].tolist()
    check_sums(stack, columns, numbers_of(fields, batch, 30), 30)


def check_sums(stack: Tensor, columns: list[int], numbers: list[Tensor], count: int) -> None:
    """With sums of each field's own, and with one tensor for two fields whose numbers differ."""
    dim = stack.shape[2]
    expected = [torch.zeros(count, dim) for _ in columns]
    stacked.sum_reference(stack, columns, numbers, expected)
    found = [torch.zeros(count, dim) for _ in columns]
    stacked.sum_compiled(stack, columns, numbers, found)
    for mine, wanted in zip(found, expected, strict=True):
        assert same_bits(mine, wanted)
    together = torch.zeros(count * len(columns), dim)
    apart = [index + count * field for field, index in enumerate(numbers)]
    stacked.sum_compiled(stack, columns, apart, [together] * len(columns))
    assert same_bits(together, torch.cat(expected))


@pytest.mark.parametrize(("batch", "fields", "dim"), MANY)
def test_sums_of_many_fields(batch: int, fields: int, dim: int) -> None:
    columns = list(range(fields))
    check_sums(torch.randn(batch, fields, dim), columns, numbers_of(fields, batch, 40), 40)


@pytest.mark.parametrize(("batch", "fields", "dim"), SHAPES + MANY)
def test_compiled_take_is_reference(batch: int, fields: int, dim: int) -> None:
    rows = [torch.randn(20 + field, dim) for field in range(fields)]
    rows[0] = torch.randn(dim, 20).T  # not contiguous
    numbers = [torch.randint(0, len(some), (batch,)) for some in rows]
    numbers[-1] = torch.randint(0, 20, (2 * batch,))[::2]
    found = stacked.take_compiled(rows, numbers)
    assert same_bits(found, stacked.take_reference(rows, numbers))
    assert found.tolist() == torch.stack([some[i] for some, i in zip(rows, numbers, strict=True)], dim=1).tolist()


def test_rows_of_another_dtype_are_taken() -> None:
    rows = [torch.rand(5, 3).bfloat16()]
    assert torch.equal(stacked.take_compiled(rows, [torch.tensor([4, 0])])[:, 0], rows[0][[4, 0]])


WRONG: list[tuple[list[int], list[Any]]] = [([0], [[0, 9]]), ([0], [[-1, 0]]), ([5], [[0, 1]]), ([-1], [[0, 1]])]


@pytest.mark.parametrize(("columns", "numbers"), [*WRONG, ([0], [[0, 1, 2]])])
def test_nothing_outside_is_read_or_written(columns: list[int], numbers: list[list[int]]) -> None:
    stack, index = torch.zeros(2, ALL_COLUMNS, 4), [torch.tensor(some) for some in numbers]
    with pytest.raises(IndexError):
        stacked.sum_compiled(stack, columns, index, [torch.zeros(9, 4)])
    if columns == [0] and len(index[0]) == 2:
        with pytest.raises(IndexError):
            stacked.take_compiled([torch.zeros(9, 4)], index)


def test_other_dtypes_and_shapes_are_refused() -> None:
    stack, index = torch.zeros(2, ALL_COLUMNS, 4), torch.tensor([0, 1])
    with pytest.raises(TypeError):
        stacked.sum_compiled(stack, [0], [index.int()], [torch.zeros(9, 4)])
    with pytest.raises(TypeError):
        stacked.sum_compiled(stack, [0], [index], [torch.zeros(9, 4, dtype=torch.float64)])
    with pytest.raises(IndexError):
        stacked.sum_compiled(stack, [0], [index], [torch.zeros(9, 5)])
    with pytest.raises(IndexError):
        stacked.take_compiled([torch.zeros(9, 4), torch.zeros(9, 5)], [index, index])
