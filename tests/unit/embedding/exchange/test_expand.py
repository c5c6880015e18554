from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hvdspark.data.feed.batch import Ragged
from hvdspark.embedding.exchange.expand import Source, outputs, stack, take
from hvdspark.embedding.ids.distinct import sum_equal, unique, whole_table
from hvdspark.embedding.ids.jagged import Jagged, jagged_of

BAGS = st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=6)
IDS = st.lists(st.lists(st.integers(0, 6), min_size=5, max_size=5), max_size=9)


def ragged(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int64)
    values = torch.tensor([id for bag in bags for id in bag], dtype=torch.int64)
    return values, F.pad(lengths.cumsum(0), (1, 0))


def sources_of(table: Tensor, cells: list[Jagged], replicated: bool) -> tuple[Source, Tensor]:
    """What reads some rows of a table, and the leaf whose gradient is that of the table."""
    if replicated:
        return Source(table, None, cells, range(len(cells))), table
    distinct = unique(torch.cat([feature.ids for feature in cells]))
    return Source(table[distinct.keys], distinct, cells, range(len(cells))), table


@pytest.mark.parametrize("replicated", [True, False])
@given(bags=BAGS, pooling=st.sampled_from(["sum", "mean"]), width=st.integers(1, 3))
def test_outputs_and_gradients_are_those_of_stock_autograd(
    replicated: bool, bags: list[list[int]], pooling: str, width: int
) -> None:
    torch.manual_seed(0)
    matrix = torch.randint(0, 7, (len(bags), width))
    cells = [jagged_of(matrix, "none", "m"), jagged_of(ragged(bags), pooling, "r"), jagged_of(matrix, pooling, "p")]
    table = torch.rand(7, 3, requires_grad=True)
    source, leaf = sources_of(table, cells, replicated)

    values, offsets = ragged(bags)
    expected = [
        F.embedding(matrix, table),
        F.embedding_bag(values, table, offsets, mode=pooling, include_last_offset=True),
        F.embedding_bag(matrix, table, mode=pooling) if len(bags) else torch.zeros(0, 3),
    ]
    taken = take([source])
    for mine, stock in zip(taken, expected, strict=True):
        assert torch.equal(mine, stock)
    weights = [torch.rand_like(value) for value in expected]
    losses = [sum((v * w).sum() for v, w in zip(values, weights, strict=True)) for values in (expected, taken)]
    stock, mine = (torch.autograd.grad(loss, leaf)[0] for loss in losses)  # type: ignore[arg-type]
    torch.testing.assert_close(mine, stock)


def test_one_table_alone_has_the_gradient_of_torch_bit_for_bit() -> None:
    ids = torch.randint(0, 300, (8192,))
    table = torch.rand(300, 16, requires_grad=True)
    gradient = torch.randn(8192, 16)
    (stock,) = torch.autograd.grad(F.embedding(ids, table), table, gradient)
    for replicated in (True, False):
        source, leaf = sources_of(table, [jagged_of(ids, "none", "f")], replicated)
        assert torch.equal(torch.autograd.grad(take([source]), leaf, [gradient])[0], stock)


@given(IDS)
def test_stacked_is_taken_and_stacked(ids: list[list[int]]) -> None:
    """Two features of one sharded source, two of one replicated table, and one more of a third; mixed up."""
    features = torch.tensor(ids, dtype=torch.int64).reshape(len(ids), 5)
    cells = [jagged_of(column, "none", "f") for column in features.unbind(1)]
    distinct = unique(torch.cat([cells[3].ids, cells[0].ids]))
    leaves = [torch.rand(n, 3, requires_grad=True) for n in (len(distinct.keys), 7, 8)]
    sources = [
        Source(leaves[0], distinct, [cells[3], cells[0]], [3, 0]),
        Source(leaves[1], None, [cells[1], cells[4]], [1, 4]),
        Source(leaves[2], None, [cells[2]], [2]),
    ]
    gradient = torch.randn(len(ids), 5, 3)
    expected, stacked = torch.stack(take(sources), dim=1), stack(sources)
    assert torch.equal(stacked, expected)
    for mine, stock in zip(
        torch.autograd.grad(stacked, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        assert torch.equal(mine, stock)


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_gradients_in_any_layout(batch: int) -> None:
    table = torch.rand(7, 3, requires_grad=True)
    columns = torch.randint(0, 7, (batch, 4))
    cells = [jagged_of(column, "none", "f") for column in columns.unbind(1)]

    def of(gradient: Tensor) -> Tensor:
        return torch.autograd.grad(stack([Source(table, None, cells, range(4))]), table, gradient)[0]

    wide, transposed = torch.randn(batch, 9, 3), torch.randn(3, 4, batch)
    for gradient in (
        wide[:, 1:5],  # as of torch.cat
        wide[:, ::2][:, :4],
        transposed.permute(2, 1, 0),
        torch.randn(batch, 14)[:, 1:13].unflatten(1, (4, 3)),  # rows at no multiple of the width
        torch.randn(4, 3).expand(batch, 4, 3),
        torch.ones(()).expand(batch, 4, 3),
        torch.randn(2 * batch, 4, 3)[::2],
    ):
        assert torch.equal(of(gradient), of(gradient.clone(memory_format=torch.contiguous_format)))


def test_what_is_pooled_is_stacked_too() -> None:
    table = torch.rand(7, 3)
    cells = [jagged_of(torch.tensor([[1, 2], [3, 4]]), "sum", "a"), jagged_of(torch.tensor([5, 6]), "none", "b")]
    stacked = stack([Source(table, None, cells, [1, 0])])
    assert torch.equal(stacked, torch.stack([table[[5, 6]], table[[1, 3]] + table[[2, 4]]], dim=1))


def test_features_of_different_lengths_are_not_stacked() -> None:
    cells = [jagged_of(torch.zeros(rows, dtype=torch.int64), "none", "f") for rows in (2, 1)]
    with pytest.raises(RuntimeError, match="equal size"):
        stack([Source(torch.rand(7, 3), None, cells, [0, 1])])
    with pytest.raises(RuntimeError, match="equal size"):
        stack([Source(torch.rand(7, columns), None, cells[:1], [column]) for column, columns in enumerate((2, 3))])


def test_rows_on_another_device() -> None:
    """ "meta" stands for a GPU: it refuses to work with what is on the CPU, too."""
    cells = [jagged_of(torch.tensor([1, 2]), "none", "a"), jagged_of(ragged([[1], [2, 2]]), "mean", "b")]
    taken = take([Source(torch.rand(7, 3, device="meta"), None, cells, [0, 1])])
    assert [(value.device.type, value.shape) for value in taken] == [("meta", (2, 3))] * 2
    assert stack([Source(torch.rand(7, 3, device="meta"), None, cells[:1], [0])]).device.type == "meta"


def test_an_output_that_the_loss_does_not_use() -> None:
    cells = [jagged_of(torch.tensor([1, 2]), "none", "a"), jagged_of(torch.tensor([2, 3]), "none", "b")]
    rows = torch.rand(3, 2, requires_grad=True)
    take([Source(rows, unique(torch.tensor([1, 2, 2, 3])), cells, [0, 1])])[0].sum().backward()
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
        cells = jagged_of(value, pooling, "f")
        assert outputs(rows, cells.ids, cells).shape == expected


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_an_empty_bag_is_zeros(pooling: str) -> None:
    cells = jagged_of(ragged([[], [1]]), pooling, "f")
    assert outputs(torch.ones(2, 3), cells.ids, cells).tolist() == [[0.0] * 3, [1.0] * 3]


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("others", ["alone", "with an id", "with bags"])
@pytest.mark.parametrize("layout", ["contiguous", "expanded", "sliced"])
def test_the_gradient_of_bags_is_that_of_each_lookup_summed_without_writing_it(
    monkeypatch: pytest.MonkeyPatch, pooling: str, replicated: bool, others: str, layout: str
) -> None:
    random = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 6, (50,), generator=random)
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    bags = (torch.randint(0, 40, (int(lengths.sum()),), generator=random), offsets)
    cells = [jagged_of(bags, pooling, "bags")]
    if others == "with an id":
        cells.append(jagged_of(torch.randint(0, 40, (50,), generator=random), "none", "one"))
    if others == "with bags":
        cells.append(jagged_of(torch.randint(0, 40, (50, 3), generator=random), "sum", "matrix"))
    source, leaf = sources_of(torch.rand(40, 4, requires_grad=True), cells, replicated)
    gradients = [torch.randn(50, 8, generator=random)[:, :4] for _ in cells]
    if layout != "sliced":
        gradients = [gradient.contiguous() for gradient in gradients]
    if layout == "expanded":
        gradients = [gradient[0].expand(50, 4) for gradient in gradients]

    of_each_lookup = []
    for feature, gradient in zip(cells, gradients, strict=True):
        if feature.pooling == "mean":
            gradient = gradient / feature.offsets.diff().clamp(min=1).unsqueeze(1)  # type: ignore[union-attr]
        repeats = 1 if feature.offsets is None else feature.offsets.diff()
        of_each_lookup.append(gradient.repeat_interleave(torch.as_tensor(repeats), dim=0))
    ids = torch.cat([feature.ids for feature in cells])
    expected = sum_equal(torch.cat(of_each_lookup), whole_table(ids, 40) if replicated else source.distinct)
    summed: list[int] = []

    def spy(values: Tensor, *arguments: object) -> Tensor:
        summed.append(len(values))
        return sum_equal(values, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("hvdspark.embedding.exchange.expand.sum_equal", spy)
    (found,) = torch.autograd.grad(take([source]), source.rows, gradients)
    assert torch.equal(found, expected)
    assert summed == [50 * len(cells)]  # rows of cells, not lookups
