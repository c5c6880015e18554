"""Categories become the ids that the plan of Spark gives them. hvdspark 0.1.0 on Spark 4.0 gave the golden values."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest

from hvdspark.embedding.ids.categories import category_ids, kind_of, null_id
from hvdspark.errors import DataError
from tests.golden import ID_BITS, Case, cases

CASES = cases("categories")
SCALARS = [case for case in CASES if not case.type.startswith("array<")]
NUMPY = {"tinyint": "i1", "smallint": "i2", "int": "i4", "bigint": "i8", "boolean": "?", "float": "f4", "double": "f8"}


@pytest.mark.parametrize("case", SCALARS, ids=str)
def test_golden_values(case: Case) -> None:
    values = np.array(case.values, dtype=object)
    if case.type == "float":
        values = np.array([None if value is None else np.float32(value) for value in values], dtype=object)
    ids, null = category_ids(values, ID_BITS, case.trained)
    assert ids.tolist() == case.expected
    for value, found, is_null in zip(case.values, case.expected, null.tolist(), strict=True):
        gap = value is None or (isinstance(value, float) and not np.isfinite(value))
        assert is_null == gap
        assert (found == null_id(ID_BITS)) == gap


@pytest.mark.parametrize("case", [case for case in SCALARS if case.type in NUMPY], ids=str)
def test_golden_values_in_arrays_of_one_type(case: Case) -> None:
    kept = [(value, found) for value, found in zip(case.values, case.expected, strict=True) if value is not None]
    ids, null = category_ids(np.array([value for value, _ in kept], NUMPY[case.type]), ID_BITS, case.trained)
    assert ids.tolist() == [found for _, found in kept]
    assert null.tolist() == [not np.isfinite(value) for value, _ in kept]


def test_each_value_of_a_mixed_column_says_its_own_type() -> None:
    ids, null = category_ids([7, "007", 7.0, np.int8(7), None, True, "x"], ID_BITS, "int")
    assert len(set(ids[:4].tolist())) == 1
    assert null.tolist() == [False] * 4 + [True] + [False] * 2
    assert ids[5] == category_ids(np.array([1]), ID_BITS)[0][0]
    assert category_ids([], ID_BITS)[0].dtype == np.int64
    assert category_ids(np.array(["a", "Zürich"]), ID_BITS)[0].tolist() == category_ids(["a", "Zürich"], 52)[0].tolist()


@pytest.mark.parametrize(
    ("values", "trained", "message"),
    [
        ([datetime.date(2026, 11, 27)], "", "a string, an integer or a boolean.*date.*Hint"),
        (np.array(["2026-11-27"], "M8[D]"), "", "a string, an integer or a boolean.*datetime64"),
        ([b"ff"], "", "a string, an integer or a boolean.*bytes"),
        ([[1]], "", "a string, an integer or a boolean.*list"),
        ([7], "string", "trained on text.*Hint.*007"),
        (np.array([1.0]), "varchar(3)", "trained on text.*Hint.*007"),
        ([2**63], "", "more than 64 bits"),
        (np.zeros((2, 2), np.int64), "", "one for each row"),
        ("i-17", "", "one for each row.*str.*into a list"),
        (7, "", "one for each row.*int.*into a list"),
    ],
)
def test_what_is_no_category_is_refused(values: Any, trained: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        category_ids(values, ID_BITS, trained)


def test_kinds() -> None:
    kinds = {"array<varchar(3)>": "text", "smallint": "integer", "decimal(5,2)": "fraction", "vector": "fraction"}
    assert {name: kind_of(name) for name in kinds} == kinds
    assert kind_of("date") == "date"
