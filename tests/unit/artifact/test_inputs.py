"""Columns of rows become the tensors that a module takes, raw ones as in the plan of Spark."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from hvdspark.artifact.forward import Input
from hvdspark.artifact.inputs import Inputs, numbers
from hvdspark.data import Ragged
from hvdspark.embedding.ids.categories import category_ids
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec
from tests.golden import ID_BITS, Case, cases

NUMPY = {"tinyint": "i1", "smallint": "i2", "int": "i4", "bigint": "i8", "boolean": "?", "float": "f4", "double": "f8"}
ARRAYS = [case for case in cases("categories") if case.type.startswith("array<")]
RAW = Inputs(
    (
        ColumnSpec("price", "float64", "scalar"),
        ColumnSpec("user", "int64", "scalar"),
        ColumnSpec("tags", "int64", "ragged"),
    ),
    {"user": "bigint"},
    ("price",),
    ("user", "tags"),
    ID_BITS,
)


@pytest.mark.parametrize("case", cases("numbers"), ids=str)
def test_golden_numbers(case: Case) -> None:
    given: list[Any] = case.values
    if case.type == "float":
        given = [None if value is None else np.float32(value) for value in given]
    expected = [np.nan if value is None else value for value in case.expected]
    assert list(map(repr, numbers(given).tolist())) == list(map(repr, expected))
    if case.type in NUMPY:
        kept = [(value, found) for value, found in zip(given, expected, strict=True) if value is not None]
        found = numbers(np.array([value for value, _ in kept], NUMPY[case.type])).tolist()
        assert list(map(repr, found)) == [repr(value) for _, value in kept]


@pytest.mark.parametrize("case", ARRAYS, ids=str)
def test_golden_arrays(case: Case) -> None:
    inputs = Inputs((ColumnSpec("x", "int64", "ragged"),), {"x": case.trained}, (), ("x",), ID_BITS)
    ragged = inputs.tensors({"x": case.values}, keep=True)["x"]
    assert isinstance(ragged, Ragged)
    bounds = ragged.offsets.tolist()
    found = [ragged.values[first:stop].tolist() for first, stop in itertools.pairwise(bounds)]
    assert found == case.expected
    if any(value is None or None in value for value in case.values):
        with pytest.raises(DataError, match="null.*'x'.*Hint.*handleInvalid"):
            inputs.tensors({"x": case.values})


def test_raw_columns_of_a_click_model() -> None:
    columns = {"price": [1, 2.5], "user": np.array([7, -1]), "tags": [["a"], []], "more": [0, 0]}
    tensors = RAW.tensors(columns)
    assert isinstance(tensors["price"], torch.Tensor)
    assert tensors["price"].dtype == torch.float64
    assert isinstance(tensors["tags"], Ragged)
    assert tensors["tags"].offsets.tolist() == [0, 1, 1]
    assert tensors["user"].tolist() == RAW.tensors({**columns, "user": ["07", "-1.0"]})["user"].tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"price": [1.0, None]}, "null or NaN in feature column 'price'"),
        ({"price": [1.0, np.inf]}, "null or NaN in feature column 'price'"),
        ({"price": ["1", "2"]}, "one number in each row.*'price'"),
        ({"price": np.array(["2026-11-27", "2026-11-28"], "M8[D]")}, "one number in each row.*'price'"),
        ({"user": [1, None]}, "null in feature column 'user'.*Hint"),
        ({"user": [1, np.nan]}, "null in feature column 'user'"),
        ({"tags": [["a"], None]}, "null in feature column 'tags'"),
        ({"tags": [["a"], [[]]]}, "feature column 'tags'.*a string, an integer or a boolean"),
        ({"tags": ["ab", "c"]}, "a list of values in each row: 'str'.*'tags'"),
        ({"tags": [1, 2]}, "a list of values in each row: 'int'.*'tags'"),
        ({"user": [1]}, "different numbers of rows: 2 in 'price', 1 in 'user'"),
        ({"user": "ab"}, "one value for each row: 'str'.*'user'"),
        ({"user": [[1], [2]]}, "feature column 'user'.*a string, an integer or a boolean.*'list'"),
        ({"user": [[1, 2], [2]]}, "feature column 'user'.*a string, an integer or a boolean.*'list'"),
        ({"user": {1, 2}}, "one value for each row: 'set'.*'user'"),
        ({"price": 3.0}, "one value for each row: 'float'.*'price'"),
    ],
)
def test_what_cannot_be_scored_is_named(changes: dict[str, Any], message: str) -> None:
    columns = {"price": [1.0, 2.0], "user": [1, 2], "tags": [["a"], ["b"]]}
    with pytest.raises(DataError, match=message):
        RAW.tensors({**columns, **changes})


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match=r"missing: \['user'\].*Hint.*given are \['price', 'tags'\]"):
        RAW.tensors({"price": [1.0], "tags": [[]]})


PLAIN = Inputs(
    (
        ColumnSpec("x", "float32", "scalar"),
        ColumnSpec("v", "float32", "fixed", 2),
        ColumnSpec("k", "int64", "scalar"),
        ColumnSpec("w", "int64", "ragged"),
    )
)


def parts(value: Input) -> list[torch.Tensor]:
    return [value.values, value.offsets] if isinstance(value, Ragged) else [value]


def test_lists_become_what_arrays_become() -> None:
    lists: dict[str, Any] = {"x": [1, 0.5], "v": [[1, 2.5], [3, 4]], "k": [2**62 + 1, True], "w": [[2**53 + 1], []]}
    arrays = {
        "x": np.array([1, 0.5]),
        "v": [np.array([1, 2.5], "f"), np.array([3, 4], "f")],
        "k": np.array([2**62 + 1, 1]),
        "w": [np.array([2**53 + 1]), np.array([], np.int64)],
    }
    for name, one in PLAIN.tensors(lists).items():
        other = PLAIN.tensors(arrays)[name]
        for left, right in zip(parts(one), parts(other), strict=True):
            assert left.dtype == right.dtype
            assert torch.equal(left, right)


def test_an_empty_array_says_nothing_about_types() -> None:
    large = np.array([2**53 + 1])
    tensors = RAW.tensors({"price": [1.0, 2.0], "user": [1, 2], "tags": [np.array([]), large]})
    assert isinstance(tensors["tags"], Ragged)
    assert tensors["tags"].values.tolist() == category_ids(large, ID_BITS)[0].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [1.0, None]}, "null or NaN in feature column 'x'"),
        ({"x": ["a", "b"]}, "not numbers.*'x'"),
        ({"x": [1.0, "b"]}, "not numbers.*'x'"),
        ({"k": [1, 0.5]}, "not integers.*'k'"),
        ({"k": [1, None]}, "null in feature column 'k'"),
        ({"w": [[1], [None]]}, "null in feature column 'w'"),
        ({"v": [[1.0, 2.0], [1.0]]}, "arrays of length 2: 1.*Hint"),
        ({"v": [[1.0, 2.0]]}, "different numbers of rows: 2 in 'x', 1 in 'v'"),
        ({"x": [[1.0], [2.0]]}, "one number in each row: 'list'.*'x'"),
        ({"x": [[1.0, 2.0], [2.0]]}, "one number in each row: 'list'.*'x'"),
        ({"k": [[1], [2]]}, "one number in each row: 'list'.*'k'"),
        ({"v": [[[1.0, 2.0]], [[1.0, 2.0]]]}, "not numbers.*'list'.*'v'"),
        ({"v": [np.zeros((1, 2)), np.zeros(2)]}, "not numbers.*'ndarray'.*'v'"),
        ({"x": np.array(1.0)}, "one value for each row.*'x'"),
    ],
)
def test_other_values_than_in_training_are_named(changes: dict[str, Any], message: str) -> None:
    columns = {"x": [1.0, 2.0], "v": [[1.0, 2.0], [3.0, 4.0]], "k": [1, 2], "w": [[1], [2]]}
    with pytest.raises(DataError, match=message):
        PLAIN.tensors({**columns, **changes})
