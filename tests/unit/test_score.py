"""Columns of a pandas batch become the tensors that training saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hvdspark import score as scoring
from hvdspark.artifact import inputs
from hvdspark.data import Ragged
from hvdspark.data.feed.batch import Column
from hvdspark.errors import DataError
from hvdspark.score import values_of
from hvdspark.specs import ColumnSpec


def to_tensor(column: ColumnSpec, series: pd.Series, keep: bool = False) -> Column:
    return inputs.to_tensor(column, values_of(column, series), keep)


def test_scalars_keep_their_type() -> None:
    big = 2**62 + 1
    ids = to_tensor(ColumnSpec("k", "int64", "scalar"), pd.Series([big, -1]))
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == [big, -1]
    numbers = to_tensor(ColumnSpec("x", "float32", "scalar"), pd.Series([0.5, 2.0], dtype="float32"))
    assert isinstance(numbers, torch.Tensor)
    assert numbers.dtype == torch.float32


def test_fixed_arrays() -> None:
    column = ColumnSpec("x", "float32", "fixed", 2)
    tensor = to_tensor(column, pd.Series([np.array([1, 2], "f"), np.array([3, 4], "f")]))
    assert torch.equal(tensor, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    empty = to_tensor(column, pd.Series([], dtype=object))
    assert isinstance(empty, torch.Tensor)
    assert (empty.shape, empty.dtype) == ((0, 2), torch.float32)
    with pytest.raises(DataError, match="arrays of length 2: 3 .in x.*Hint"):
        to_tensor(column, pd.Series([np.array([1, 2], "f"), np.array([1, 2, 3], "f")]))


def test_ragged_arrays() -> None:
    column = ColumnSpec("x", "int64", "ragged")
    ragged = to_tensor(column, pd.Series([np.array([7, 8]), np.array([], "int64"), np.array([9])]))
    assert isinstance(ragged, Ragged)
    assert ragged.values.tolist() == [7, 8, 9]
    assert ragged.values.dtype == torch.int64
    assert ragged.offsets.tolist() == [0, 2, 2, 3]


@pytest.mark.parametrize(
    ("column", "values", "keep"),
    [
        (ColumnSpec("x", "float32", "scalar"), [0.5, np.nan], False),
        (ColumnSpec("x", "int64", "scalar"), [1.0, np.nan], False),
        (ColumnSpec("x", "int64", "scalar"), [1.0, np.nan], True),
        (ColumnSpec("x", "float32", "fixed", 1), [np.array([1], "f"), np.array([np.nan], "f")], False),
        (ColumnSpec("x", "float32", "fixed", 1), [np.array([1], "f"), None], True),
        (ColumnSpec("x", "int64", "ragged"), [np.array([2**53 + 1]), np.array([1.0, np.nan])], False),
        (ColumnSpec("x", "int64", "ragged"), [np.array([2**53 + 1]), np.array([1.0, np.nan])], True),
        (ColumnSpec("x", "int64", "ragged"), [np.array([2**53 + 1]), None], True),
    ],
)
def test_invalid_values_are_named(column: ColumnSpec, values: list[Any], keep: bool) -> None:
    with pytest.raises(DataError, match="null.*in feature column 'x'.*Hint.*handleInvalid"):
        to_tensor(column, pd.Series(values), keep)


def test_float_columns_can_keep_invalid_values() -> None:
    scalar = to_tensor(ColumnSpec("x", "float32", "scalar"), pd.Series([0.5, None], dtype="float32"), keep=True)
    array = to_tensor(ColumnSpec("x", "float32", "ragged"), pd.Series([np.array([0.5, np.nan], "f")]), keep=True)
    assert isinstance(scalar, torch.Tensor)
    assert isinstance(array, Ragged)
    for tensor in (scalar, array.values):
        assert torch.equal(tensor.isnan(), torch.tensor([False, True]))


def test_modules_may_write_into_their_inputs() -> None:
    array = np.ones(2, "float32")
    array.flags.writeable = False
    tensor = to_tensor(ColumnSpec("x", "float32", "scalar"), pd.Series(array, copy=False))
    assert isinstance(tensor, torch.Tensor)
    tensor += 1
    assert array.tolist() == [1, 1]


def test_bytes_of_files() -> None:
    column = ColumnSpec("f", "uint8", "ragged")
    files = to_tensor(column, pd.Series([b"ab", b"", bytearray(b"\xff")]))
    assert isinstance(files, Ragged)
    assert files.values.dtype == torch.uint8
    assert files.values.tolist() == [97, 98, 255]
    assert files.offsets.tolist() == [0, 2, 2, 3]
    none = to_tensor(column, pd.Series([], dtype=object))
    assert isinstance(none, Ragged)
    assert (len(none.values), none.offsets.tolist()) == (0, [0])
    with pytest.raises(DataError, match="null in feature column 'f'.*Hint: fill it, or set handleInvalid to 'skip'"):
        to_tensor(column, pd.Series([b"a", None]))
    with pytest.raises(DataError, match=r"not bytes: \['str'\].*'f'"):
        to_tensor(column, pd.Series(["a"]))


@pytest.mark.parametrize("most_rows", [None, 1, 3, 7, 8])
def test_rows_of_one_call(monkeypatch: pytest.MonkeyPatch, most_rows: int | None) -> None:
    calls: list[int] = []

    class Doubles(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            calls.append(len(x))
            return 2 * x, torch.stack([x, -x], dim=1)

    monkeypatch.setattr(scoring, "load_module", lambda spec: Doubles())
    features = (ColumnSpec("x", "float32", "scalar"),)
    spec = scoring.ScoringSpec("memory:///s", "m", "", b"", features, "error", most_rows)
    batches = [(pd.Series(range(rows), dtype="float32"),) for rows in (7, 0)]
    whole, empty = scoring.score(spec, iter(batches))
    assert whole[0].tolist() == [2.0 * x for x in range(7)]
    assert [list(pair) for pair in whole[1]] == [[x, -x] for x in range(7)]
    assert [len(series) for series in empty] == [0, 0]
    most = most_rows or 7
    assert calls == [*[most] * (7 // most), *([7 % most] if 7 % most else []), 0]
