from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hvdspark.embedding.kernels import sums


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int32)


@pytest.mark.parametrize("width", [1, 3, 8, 16, 17, 32, 50, 128])
@pytest.mark.parametrize(("rows", "count"), [(0, 0), (0, 5), (1, 1), (1000, 1), (1000, 300), (70_000, 70_001)])
def test_compiled_is_reference(rows: int, count: int, width: int) -> None:
    values = torch.randn(rows, width) * 10.0 ** torch.randint(-6, 6, (rows, 1))
    values[:2] = -0.0
    numbers = torch.randint(0, max(count, 1), (rows,))
    assert torch.equal(bits(sums.compiled(values, numbers, count)), bits(sums.reference(values, numbers, count)))
    places = torch.randint(0, max(rows, 1), (2 * rows,))
    numbers = numbers.repeat(2)
    expected = sums.reference(values, numbers, count, places)
    assert torch.equal(bits(sums.compiled(values, numbers, count, places)), bits(expected))


def test_memory_with_gaps() -> None:
    values, numbers, places = torch.randn(40, 9)[::2, 1:], torch.arange(60)[::3] % 7, torch.arange(40)[::2] % 20
    expected = sums.reference(values, numbers, 7, places)
    assert torch.equal(bits(sums.compiled(values, numbers, 7, places)), bits(expected))


@pytest.mark.parametrize(
    ("numbers", "places"), [([0, 3], None), ([0, -1], None), ([0, 0], [0, 2]), ([0, 0], [-1, 0]), ([0], None)]
)
def test_nothing_outside_is_read_or_written(numbers: list[int], places: list[int] | None) -> None:
    with pytest.raises(IndexError):
        sums.compiled(torch.zeros(2, 4), torch.tensor(numbers), 3, None if places is None else torch.tensor(places))
