from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.data.batch import Ragged
from hvdspark.embedding.cells import cells_of, outputs, take
from hvdspark.embedding.dedup import unique

BAGS = st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=6)


def ragged(bags: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int64)
    values = torch.tensor([id for bag in bags for id in bag], dtype=torch.int64)
    return values, F.pad(lengths.cumsum(0), (1, 0))


@given(BAGS, st.sampled_from(["sum", "mean"]), st.integers(1, 3))
def test_outputs_and_gradients_are_those_of_stock_autograd(bags: list[list[int]], pooling: str, width: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randint(0, 7, (len(bags), width))
    cells = [cells_of(matrix, "none", "m"), cells_of(ragged(bags), pooling, "r"), cells_of(matrix, pooling, "p")]
    distinct = unique(torch.cat([feature.ids for feature in cells]))
    table = torch.rand(7, 3, requires_grad=True)
    rows = table.detach()[distinct.keys].requires_grad_(True)

    values, offsets = ragged(bags)
    expected = [
        F.embedding(matrix, table),
        F.embedding_bag(values, table, offsets, mode=pooling, include_last_offset=True),
        F.embedding_bag(matrix, table, mode=pooling) if len(bags) else torch.zeros(0, 3),
    ]
    taken = take(rows, distinct, cells)
    for mine, stock in zip(taken, expected, strict=True):
        assert torch.equal(mine, stock)
    weights = [torch.rand_like(value) for value in expected]
    sum((value * weight).sum() for value, weight in zip(expected, weights, strict=True)).backward()  # type: ignore
    sum((value * weight).sum() for value, weight in zip(taken, weights, strict=True)).backward()  # type: ignore
    torch.testing.assert_close(rows.grad, table.grad[distinct.keys])  # type: ignore[index]


def test_an_output_that_the_loss_does_not_use() -> None:
    cells = [cells_of(torch.tensor([1, 2]), "none", "a"), cells_of(torch.tensor([2, 3]), "none", "b")]
    distinct = unique(torch.tensor([1, 2, 2, 3]))
    rows = torch.rand(3, 2, requires_grad=True)
    take(rows, distinct, cells)[0].sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]


def test_shapes() -> None:
    rows = torch.rand(5, 3)
    for value, pooling, expected in [
        (torch.zeros(4, dtype=torch.int64), "none", (4, 3)),
        (torch.zeros(4, dtype=torch.int64), "sum", (4, 3)),
        (torch.zeros(4, 2, dtype=torch.int64), "none", (4, 2, 3)),
        (torch.zeros(4, 2, dtype=torch.int64), "mean", (4, 3)),
        (torch.zeros(0, 2, dtype=torch.int64), "none", (0, 2, 3)),
        (torch.zeros(4, 0, dtype=torch.int64), "sum", (4, 3)),
        (Ragged(*ragged([[1], [], [2, 2]])), "sum", (3, 3)),
        (ragged([]), "mean", (0, 3)),
    ]:
        cells = cells_of(value, pooling, "f")
        assert outputs(rows, cells.ids, cells).shape == expected


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_an_empty_bag_is_zeros(pooling: str) -> None:
    cells = cells_of(ragged([[], [1]]), pooling, "f")
    assert outputs(torch.ones(2, 3), cells.ids, cells).tolist() == [[0.0] * 3, [1.0] * 3]
