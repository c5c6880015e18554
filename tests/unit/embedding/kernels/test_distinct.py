from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.kernels import distinct
from tests.unit.embedding.kernels.colliding import keys_of_few_cells

BATCHES = {
    "none": [],
    "one": [7],
    "all equal": [5] * 1000,
    "negative": [-1, 3, -1, -(2**63), 2**63 - 1, 3, 0],
    "descending": list(range(5000, 0, -1)),
    "colliding": keys_of_few_cells(3000).repeat(2).tolist(),
    "a million": (np.random.default_rng(3).zipf(1.3, 1_000_000) % 10**12).tolist(),
    "a million that differ": np.random.default_rng(4).integers(0, 2**62, 1_000_000).tolist(),
}


def check(ids: list[np.ndarray], tags: list[int], limits: list[int] | None = None) -> None:
    expected = distinct.reference(ids, tags, limits)
    found = distinct.compiled(ids, tags, limits)
    if expected is None:
        assert found is None
        return
    assert found is not None
    for array, wanted in zip(found, expected, strict=True):
        assert array.dtype == wanted.dtype == np.int64
        assert np.array_equal(array, wanted)


@pytest.mark.parametrize("batch", BATCHES)
def test_compiled_is_reference(batch: str) -> None:
    check([np.array(BATCHES[batch], dtype=np.int64)], [0])


@given(st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=60))
def test_compiled_is_reference_whatever_comes(keys: list[int]) -> None:
    check([np.array(keys, dtype=np.int64)], [0])


FEATURES = st.lists(st.tuples(st.lists(st.integers(-1, 9), max_size=80), st.integers(0, 3)), max_size=6)


@given(FEATURES, st.sampled_from([4, 10]))
def test_compiled_is_reference_for_features_of_tables(features: list[tuple[list[int], int]], limit: int) -> None:
    ids = [np.array(some, dtype=np.int64) for some, _ in features]
    tags = [table << 60 for _, table in features]
    check(ids, tags, [limit] * len(ids))
    check([np.abs(some) for some in ids], tags)


@pytest.mark.parametrize("sizes", [[70_000, 0, 100_000], [1, 300_000, 63, 64, 65]])
def test_tables_of_any_size_beside_each_other(sizes: list[int]) -> None:
    random = np.random.default_rng(5)
    ids = [random.integers(0, max(1, size), size) for size in sizes]
    check(ids, [table << 50 for table in range(len(sizes))], [max(1, size) for size in sizes])
    check([*ids, *ids], [table << 50 for table in range(len(sizes))] * 2)


@pytest.mark.parametrize("place", [0, 70, 149])
@pytest.mark.parametrize("bad", [-1, 1000, -(2**63), 2**63 - 1])
def test_an_id_out_of_range_is_no_key(bad: int, place: int) -> None:
    ids = np.arange(150)
    ids[place] = bad
    for function in (distinct.compiled, distinct.reference):
        assert function([np.arange(9), ids], [0, 1 << 40], [9, 1000]) is None


@given(FEATURES, st.integers(0, 10))
def test_compiled_limits_are_reference(features: list[tuple[list[int], int]], limit: int) -> None:
    ids, limits = [np.array(some, dtype=np.int64) for some, _ in features], [limit + table for _, table in features]
    below = all(0 <= id < limit + table for some, table in features for id in some)
    assert distinct.below_compiled(ids, limits) == distinct.below_reference(ids, limits) == below


def test_memory_with_gaps() -> None:
    check([np.arange(600, dtype=np.int64)[::-3] % 17], [0])


def test_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="int64, not int32"):
        distinct.compiled([np.arange(3, dtype=np.int32)], [0])


@given(FEATURES)
def test_the_reference_says_what_it_should(features: list[tuple[list[int], int]]) -> None:
    by_table: dict[int, list[int]] = {}
    for some, table in sorted(features, key=lambda feature: feature[1]):
        by_table.setdefault(table, []).extend(abs(id) | table << 60 for id in some)
    ids, tags = [np.abs(np.array(some, dtype=np.int64)) for some, _ in features], [table << 60 for _, table in features]
    found = distinct.reference(ids, tags)
    assert found is not None
    assert found[0].tolist() == [key for keys in by_table.values() for key in dict.fromkeys(keys)]
    keys = [key for some, tag in zip(ids, tags, strict=True) for key in (some | tag).tolist()]
    assert found[0][found[1]].tolist() == keys
