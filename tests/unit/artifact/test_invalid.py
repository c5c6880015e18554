"""Which rows have no value: what `handleInvalid="skip"` drops in Spark, see tests/spark/test_mlflow_flavor.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from hvdspark.artifact.inputs import BYTES, Inputs
from hvdspark.artifact.invalid import valid_rows
from hvdspark.errors import DataError
from hvdspark.specs import ColumnSpec

NAN, INF = math.nan, math.inf
FLOAT, WHOLE = ColumnSpec("x", "float32", "scalar"), ColumnSpec("x", "int64", "scalar")
FLOATS, WHOLES = ColumnSpec("x", "float32", "ragged"), ColumnSpec("x", "int64", "ragged")


def found(inputs: Inputs, values: Any) -> list[bool]:
    valid: list[bool] = valid_rows(inputs, {"x": values}).tolist()
    return valid


@pytest.mark.parametrize("values", [[1.5, None, NAN, INF], np.array([1.5, NAN, NAN, INF])])
def test_numbers(values: Any) -> None:
    assert found(Inputs((FLOAT,)), values) == [True, False, False, True]
    assert found(Inputs((FLOAT,), numbers=("x",)), values) == [True, False, False, False]


def test_integers_that_became_fractions() -> None:
    assert found(Inputs((WHOLE,)), [1, None, 2.0, NAN, INF]) == [True, False, True, False, False]
    assert found(Inputs((WHOLE,)), np.array([1, 2])) == [True, True]


def test_arrays() -> None:
    assert found(Inputs((FLOATS,)), [[1.0], [], None, [2.0, NAN], [None], np.array([INF])]) == [
        *(True, True, False),
        *(False, False, True),
    ]
    assert found(Inputs((WHOLES,)), [np.array([1, 2]), [1, None], [1.0, NAN]]) == [True, False, False]


def test_categories() -> None:
    text = Inputs((WHOLE,), {"x": "string"}, categories=("x",), id_bits=52)
    assert found(text, ["", None, "NaN"]) == [True, False, True]
    many = Inputs((WHOLES,), {"x": "array<string>"}, categories=("x",), id_bits=52)
    assert found(many, [["a"], None, ["b", None], []]) == [True, False, False, True]
    with pytest.raises(DataError, match="trained on text"):
        found(text, [1, 2, 3])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (FLOAT, ["a", 1.0], r"not numbers.*\['str'\].*'x'"),
        (FLOAT, [[1.0], [2.0]], r"not numbers.*\['list'\].*'x'"),
        (FLOATS, [1.0, 2.0], "a list of values in each row: 'float'.*'x'"),
        (FLOATS, ["ab", None], "a list of values in each row: 'str'.*'x'"),
        (FLOATS, [["a"], [1.0]], r"not numbers.*\['str'\].*'x'"),
    ],
)
def test_values_of_another_kind_are_named(column: ColumnSpec, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        found(Inputs((column,)), values)


def test_bytes_have_no_gaps_inside() -> None:
    assert found(Inputs((ColumnSpec("x", BYTES, "ragged"),)), [b"ab", None, b""]) == [True, False, True]
