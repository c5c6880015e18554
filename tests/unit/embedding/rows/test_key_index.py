from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.embedding.rows import key_index
from hvdspark.embedding.rows.key_index import KeyIndex
from tests.unit.embedding.kernels.colliding import keys_of_few_cells

keys_lists = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 300), unique=True, max_size=200)


@settings(max_examples=60)
@given(st.lists(st.tuples(keys_lists, st.integers(0, 3)), max_size=8))
def test_like_a_dict(rounds: list[tuple[list[int], int]]) -> None:
    index, expected = KeyIndex(), {}
    for keys, thin in rounds:
        new = np.array([key for key in keys if key not in expected], dtype=np.int64)
        places = index.insert(new)
        expected.update(zip(new.tolist(), places.tolist(), strict=True))
        if thin:
            kept = index.keys % 4 >= thin
            index.keep(kept)
            left = [key for key in expected if key % 4 >= thin]
            expected = {key: place for place, key in enumerate(left)}
        asked = np.array(keys + list(expected) + [10**15 + 1], dtype=np.int64)
        assert index.find(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]
        assert index.keys.tolist() == list(expected)
        assert len(index) == len(expected)


def test_large_and_clustered() -> None:
    index = KeyIndex()
    keys = np.arange(200_000, dtype=np.int64) << 40
    for start in range(0, len(keys), 30_000):
        index.insert(keys[start : start + 30_000])
    assert (index.find(keys) == np.arange(len(keys))).all()
    assert (index.find(keys + 1) == -1).all()
    assert index.nbytes <= len(keys) * (8 * 1.13 + 4 * 3.4)


def test_keys_that_all_want_few_cells() -> None:
    index = KeyIndex()
    keys = keys_of_few_cells(300)  # they run past the last of 1024 cells
    index.insert(keys)
    assert (index.find(keys[::-1]) == np.arange(300)[::-1]).all()
    assert index.find(np.array([-1])).tolist() == [-1]


def test_too_many_keys_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "_MAX_KEYS", 100)
    index = KeyIndex()
    index.insert(np.arange(100))
    with pytest.raises(OverflowError, match="101 keys: one index holds at most 100"):
        index.insert(np.array([100]))
    assert len(index) == 100
