from __future__ import annotations

import numpy as np
import pytest

from hvdspark.embedding.kernels import index
from tests.unit.embedding.kernels.colliding import keys_of_few_cells

PLACES = {"reference": index.place_reference, "compiled": index.place_compiled}
KEYS = {
    "none": np.empty(0, dtype=np.int64),
    "one": np.array([-5]),
    "colliding": keys_of_few_cells(600),
    "clustered": np.arange(-300, 300) << 40,
    "a million": np.random.default_rng(5).permutation(1_000_000) * 977,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", KEYS)
def test_compiled_find_is_reference(case: str, place: str) -> None:
    keys = KEYS[case]
    cells = np.full(1 << max(10, (2 * len(keys)).bit_length()), -1, dtype=np.int32)
    half = len(keys) // 2
    PLACES[place](cells, keys, 0, half)
    PLACES[place](cells, keys, half, len(keys))
    assert sorted(cells[cells >= 0].tolist()) == list(range(len(keys)))
    asked = np.concatenate([keys[::-1], keys[:100] + 1, [2**63 - 1, -1]])
    expected = index.find_reference(cells, keys, asked)
    assert np.array_equal(expected[: len(keys)], np.arange(len(keys))[::-1])
    assert np.array_equal(index.find_compiled(cells, keys, asked), expected)
    assert np.array_equal(index.find_compiled(cells, keys, np.repeat(asked, 2)[::2]), expected)
    asked = asked[: len(asked) // 2]
    counts, counted = np.full(len(keys), 7, dtype=np.int32), np.full(len(keys) + 1, 7, dtype=np.int32)
    places = index.find_reference(cells, keys, asked, counts)
    assert np.array_equal(index.find_compiled(cells, keys, asked, counted), places)
    assert np.array_equal(counts, 7 + np.bincount(places[places >= 0], minlength=len(keys)))
    assert np.array_equal(counted, [*counts, 7])


def test_fewer_counts_than_keys_are_refused() -> None:
    with pytest.raises(IndexError, match="7 counts for 8 keys"):
        index.find_compiled(np.full(16, -1, dtype=np.int32), np.arange(8), np.arange(2), np.zeros(7, dtype=np.int32))


def test_keys_that_are_not_there_are_no_business_of_compiled_code() -> None:
    with pytest.raises(IndexError, match=r"keys \[0, 9\) of 8"):
        index.place_compiled(np.full(1024, -1, dtype=np.int32), np.arange(8), 0, 9)
