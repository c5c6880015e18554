"""Sparse vectors where there is no Spark: as arrays, or as what Spark ML's vectors are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact import forward
from hvdspark.artifact.forward import predictions
from hvdspark.artifact.inputs import Entries, to_tensor
from hvdspark.data.feed.batch import Sparse
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec

COLUMN = ColumnSpec("x", "float32", "sparse", 4)
ROWS: list[Any] = [
    np.array([0.0, 1.0, 0.0, 2.0]),
    [1, 2, 3, 4],
    Entries(4, np.array([2], np.int32), np.array([5.0])),
    Entries(4, None, np.arange(4.0)),
    SimpleNamespace(size=4, indices=np.array([0, 3]), values=np.array([1.0, 2.0])),
    SimpleNamespace(size=4, indices=np.array([], int), values=np.array([])),
    SimpleNamespace(toArray=lambda: np.ones(4)),
]
DENSE = [[0, 1, 0, 2], [1, 2, 3, 4], [0, 0, 5, 0], [0, 1, 2, 3], [1, 0, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]]


def test_rows_of_every_kind_are_one_tensor() -> None:
    column = to_tensor(COLUMN, ROWS)
    assert isinstance(column, Sparse)
    assert column.dense().tolist() == DENSE
    empty = to_tensor(COLUMN, [])
    assert isinstance(empty, Sparse)
    assert empty.dense().shape == (0, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.ones(3), "arrays of length 4: 3"),
        (Entries(5, np.array([2]), np.array([5.0])), "arrays of length 4: 5"),
        (None, "null in feature column 'x'"),
        (Entries(None, None, None), "null in feature column 'x'"),
        (np.array([1.0, np.nan, 0.0, 0.0]), "null or NaN in feature column 'x'"),
        ("abcd", "a list of values in each row"),
    ],
)
def test_what_is_no_such_vector_is_refused(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        to_tensor(COLUMN, [ROWS[1], row])


def test_scoring_makes_few_rows_dense_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(len(x))
            return x.sum(dim=1), x

    columns = {"x": to_tensor(COLUMN, ROWS)}
    monkeypatch.setattr(forward, "_DENSE_BYTES", 4 * 4 * 3)
    totals, rows = predictions(Sum(), columns, ["x"], len(ROWS))
    assert seen == [3, 3, 1]
    assert (totals.tolist(), rows.tolist()) == (np.sum(DENSE, axis=1).tolist(), DENSE)
    assert predictions(Sum(), {"x": to_tensor(COLUMN, [])}, ["x"], 0)[0].shape == (0,)
    assert torch.is_grad_enabled()
