"""Windows give back exactly the rows that were put in, in the order asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.batch import Batch, Layout, Ragged, RaggedRows, Window
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


def content(first: int, rows: int) -> tuple[dict[str, np.ndarray], dict[str, RaggedRows]]:
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
    return dense, ragged


def check(batch: Batch, numbers: np.ndarray) -> None:
    number = torch.from_numpy(numbers)
    rows = len(numbers)
    assert batch.rows == rows
    assert list(batch.columns) == ["x", "id", "v", "ids", "y", "history", "scores"]
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


def window(rows: int, cuts: list[int]) -> Window:
    filled = Window(Layout.of(COLUMNS), rows)
    bounds = sorted({0, *cuts, rows})
    for start, stop in reversed(list(itertools.pairwise(bounds))):  # any order
        filled.fill(start, stop - start, *content(start, stop - start))
    return filled


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.data())
def test_draw(rows: int, data: st.DataObject) -> None:
    filled = window(rows, data.draw(st.lists(st.integers(0, rows), max_size=4)))
    order = np.random.default_rng(rows).permutation(rows)
    chosen = order[: data.draw(st.integers(0, rows))]
    check(filled.draw(chosen), chosen)
    low = data.draw(st.integers(0, rows))
    check(filled.draw(slice(low, rows)), np.arange(low, rows))


def test_no_rows_have_types_and_widths() -> None:
    empty = Window(Layout.of(COLUMNS), 0)
    check(empty.draw(slice(0, 0)), np.zeros(0, np.int64))
    check(empty.draw(np.zeros(0, np.int64)), np.zeros(0, np.int64))


def test_a_batch_shares_no_memory_with_its_window() -> None:
    filled = window(10, [])
    plain, permuted = filled.draw(slice(0, 5)), filled.draw(np.arange(5))
    again = Window(filled.layout, 8, filled.buffers)
    again.fill(0, 8, *content(100, 8))
    assert all(buffer is old for buffer, old in zip(again.buffers, filled.buffers, strict=True)), "buffers are reused"
    check(plain, np.arange(5))
    check(permuted, np.arange(5))
    check(again.draw(slice(0, 8)), np.arange(100, 108))


def test_buffers_that_are_too_small_are_not_reused() -> None:
    small = window(4, [])
    large = Window(small.layout, 5, small.buffers)
    large.fill(0, 5, *content(0, 5))
    check(large.draw(slice(0, 5)), np.arange(5))


def test_one_column_of_a_dtype_and_fixed_columns_are_contiguous() -> None:
    columns = [ColumnSpec("y", "float32", "scalar"), ColumnSpec("v", "float32", "fixed", 2)]
    drawn = Window(Layout.of(columns), 4).draw(slice(0, 4))
    assert drawn.columns["y"].is_contiguous()  # type: ignore[union-attr]
    assert drawn.columns["v"].is_contiguous()  # type: ignore[union-attr]


def test_to_another_device_keeps_everything() -> None:
    moved = window(10, []).draw(slice(0, 10)).to("meta")
    assert {column.device.type for column in moved.columns.values() if isinstance(column, torch.Tensor)} == {"meta"}
    assert moved.columns["v"].shape == (10, 3)  # type: ignore[union-attr]
    history = moved.columns["history"]
    assert isinstance(history, Ragged)
    assert history.values.device.type == "meta"
    check(window(10, []).draw(slice(0, 10)).to("cpu"), np.arange(10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_batches() -> None:
    pinned = window(10, []).draw(slice(0, 10)).pin_memory()
    assert pinned.columns["v"].is_pinned()  # type: ignore[union-attr]
    check(pinned, np.arange(10))
