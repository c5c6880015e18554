"""Windows give back exactly the rows that were put in: in order, or mixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.feed import window as window_module
from hvdspark.data.feed.batch import Batch, Layout, Ragged
from hvdspark.data.feed.window import Window
from hvdspark.data.readers.protocol import Columns, RaggedRows
from hvdspark.specs import ColumnSpec

COLUMNS = [
    ColumnSpec("x", "float32", "scalar"),
    ColumnSpec("id", "int64", "scalar"),
    ColumnSpec("v", "float32", "fixed", 3),
    ColumnSpec("ids", "int64", "fixed", 2),
    ColumnSpec("history", "int64", "ragged"),
    ColumnSpec("y", "float32", "scalar"),
    ColumnSpec("scores", "float32", "ragged"),
]
BIG = 1 << 62


def content(first: int, rows: int) -> Columns:
    """Rows whose every value follows from their number."""
    number = np.arange(first, first + rows)
    lengths = number % 4
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    dense = {
        "x": number.astype(np.float32),
        "id": number + BIG,
        "v": np.stack([number, number + 1, number + 2], 1).astype(np.float32),
        "ids": np.stack([number + BIG, -number], 1),
        "y": (number % 2).astype(np.float32),
    }
    ragged = {
        "history": RaggedRows(np.repeat(number + BIG, lengths), offsets),
        "scores": RaggedRows(np.repeat(number, lengths).astype(np.float32), offsets),
    }
    return Columns(dense, ragged)


def check(batch: Batch, rows: int) -> torch.Tensor:
    """The row numbers of a batch, after checking all columns against them."""
    number = batch.columns["id"] - BIG  # type: ignore[operator]
    assert batch.rows == rows
    assert set(batch.columns) == {column.name for column in COLUMNS}
    shapes = {name: (batch.columns[name].shape, batch.columns[name].dtype) for name in ("x", "id", "v", "ids", "y")}  # type: ignore[union-attr]
    assert shapes == {
        "x": ((rows,), torch.float32),
        "id": ((rows,), torch.int64),
        "v": ((rows, 3), torch.float32),
        "ids": ((rows, 2), torch.int64),
        "y": ((rows,), torch.float32),
    }
    assert torch.equal(batch.columns["x"], number.float())
    assert torch.equal(batch.columns["id"], number + BIG)
    assert torch.equal(batch.columns["v"], (number[:, None] + torch.arange(3)).float())
    assert torch.equal(batch.columns["ids"], torch.stack([number + BIG, -number], 1))
    assert torch.equal(batch.columns["y"], (number % 2).float())
    for name, values in (("history", number + BIG), ("scores", number.float())):
        ragged = batch.columns[name]
        assert isinstance(ragged, Ragged)
        assert ragged.offsets.dtype == torch.int64
        assert ragged.offsets[0] == 0
        assert torch.equal(ragged.offsets.diff(), number % 4)
        assert ragged.values.dtype == values.dtype
        assert torch.equal(ragged.values, torch.repeat_interleave(values, number % 4))
    assert all(column.is_contiguous() for column in batch.columns.values() if isinstance(column, torch.Tensor))
    return number


def window(rows: int, cuts: list[int], seed: int | None = None, capacity: int | None = None) -> Window:
    """A window of the rows 0, 1, ... that was filled in chunks, the last one first."""
    filled = Window(Layout.of(COLUMNS), capacity or rows)
    for start, stop in reversed(list(itertools.pairwise(sorted({0, *cuts, rows})))):
        before = 3  # rows of the row group that are not wanted
        rng = None if seed is None else np.random.default_rng([seed, start])
        filled.fill(start, content(start - before, stop - start + before + 2), before, before + stop - start, rng)
    return filled


def draw(filled: Window, sizes: list[int], seed: int | None = None) -> list[torch.Tensor]:
    rng = None if seed is None else np.random.default_rng(seed)
    return [check(batch, rows) for batch, rows in zip(filled.batches(sizes, rng), sizes, strict=True)]


@st.composite
def shapes(choose: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """Rows of a window, where its chunks are cut, and the sizes of its batches."""
    rows = choose(st.integers(1, 500))
    cuts = choose(st.lists(st.integers(0, rows), max_size=4))
    ends = sorted({*choose(st.lists(st.integers(0, rows), max_size=5)), rows})
    return rows, cuts, [stop - start for start, stop in itertools.pairwise([0, 0, *ends])]


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_in_order_without_a_generator(shape: tuple[int, list[int], list[int]]) -> None:
    rows, cuts, sizes = shape
    assert torch.equal(torch.cat(draw(window(rows, cuts), sizes)), torch.arange(rows))


@settings(max_examples=40, deadline=None)
@given(shapes(), st.integers(0, 99))
def test_every_row_once_with_a_generator(shape: tuple[int, list[int], list[int]], seed: int) -> None:
    rows, cuts, sizes = shape
    numbers = torch.cat(draw(window(rows, cuts, seed), sizes, seed))
    assert torch.equal(numbers.sort().values, torch.arange(rows))
    assert torch.equal(numbers, torch.cat(draw(window(rows, cuts, seed), sizes, seed)))


def test_the_shuffle_is_uniform() -> None:
    """Each row is in each batch equally often, and two rows meet as often as they should."""
    rounds, rows, cuts, sizes = 2000, 12, [0, 7, 10, 12], [4, 4, 4]
    layout, columns = Layout.of([ColumnSpec("id", "int64", "scalar")]), Columns({"id": np.arange(rows)}, {})
    where = np.zeros((rows, len(sizes)))
    together = 0
    for seed in range(rounds):
        filled = Window(layout, rows)
        for start, stop in itertools.pairwise(cuts):
            filled.fill(start, columns, start, stop, np.random.default_rng([seed, start, 1]))
        for number, batch in enumerate(filled.batches(sizes, np.random.default_rng([seed, 0, 0]))):
            members = batch.columns["id"].tolist()  # type: ignore[union-attr]
            where[members, number] += 1
            together += {0, 1} <= set(members)  # of the same chunk
    assert abs(where / rounds - 1 / 3).max() < 0.05  # 4.7 standard deviations
    assert abs(together / rounds - 3 / 11) < 0.05


def test_no_rows_have_types_and_widths() -> None:
    assert draw(window(3, []), [0, 3])[0].shape == (0,)
    assert draw(window(3, [], 1), [0, 3], 1)[0].shape == (0,)
    (empty,) = Window(Layout.of(COLUMNS), 0).batches([0], np.random.default_rng(0))
    check(empty, 0)


def test_a_batch_shares_no_memory_with_its_window() -> None:
    filled = window(10, [4])
    (plain,) = filled.batches([10], None)
    filled.close()
    again = window(8, [], capacity=10)
    assert again._buffers is filled._buffers, "the memory is used again"
    for buffer in again._buffers:
        buffer.fill(0)
    assert torch.equal(check(plain, 10), torch.arange(10))


def test_memory_that_does_not_fit_is_not_used_again() -> None:
    window_module._spare._sets.clear()
    small = window(4, [])
    small.close()
    assert draw(window(5, []), [5])[0].tolist() == list(range(5))
    other = Window(Layout.of(COLUMNS[:1]), 4)
    assert other._buffers is not small._buffers
    for _ in range(9):
        window(4, []).close()
    assert len(window_module._spare._sets) <= 3


def test_to_another_device_keeps_everything() -> None:
    (batch,) = window(10, []).batches([10], None)
    moved = batch.to("meta")
    assert {column.device.type for column in moved.columns.values() if isinstance(column, torch.Tensor)} == {"meta"}
    assert moved.columns["v"].shape == (10, 3)  # type: ignore[union-attr]
    history = moved.columns["history"]
    assert isinstance(history, Ragged)
    assert history.values.device.type == "meta"
    check(batch.to("cpu"), 10)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches() -> None:
    (batch,) = window(10, []).batches([10], None)
    pinned = batch.pin_memory()
    assert pinned.columns["v"].is_pinned()  # type: ignore[union-attr]
    check(pinned, 10)
