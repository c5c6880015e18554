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


def check(keys: np.ndarray) -> None:
    expected = distinct.reference(keys)
    for found, wanted in zip(distinct.compiled(keys), expected, strict=True):
        assert found.dtype == wanted.dtype == np.int64
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("batch", BATCHES)
def test_compiled_is_reference(batch: str) -> None:
    check(np.array(BATCHES[batch], dtype=np.int64))


@given(st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=60))
def test_compiled_is_reference_whatever_comes(keys: list[int]) -> None:
    check(np.array(keys, dtype=np.int64))


def test_memory_with_gaps() -> None:
    check(np.arange(600, dtype=np.int64)[::-3] % 17)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="int64, not int32"):
        distinct.compiled(np.arange(3, dtype=np.int32))


@given(st.lists(st.integers(-3, 3), max_size=40))
def test_the_reference_says_what_it_should(keys: list[int]) -> None:
    found, inverse, times = distinct.reference(np.array(keys, dtype=np.int64))
    assert found.tolist() == list(dict.fromkeys(keys))
    assert found[inverse].tolist() == keys
    assert times.tolist() == [keys.count(key) for key in found.tolist()]
