from __future__ import annotations

import numpy as np

from hvdspark.embedding.rows.admission import WaitingKeys


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def entries(waiting: WaitingKeys) -> dict[int, tuple[int, int]]:
    """{key: (count, age)} of those that wait."""
    places = np.flatnonzero(waiting.waits(np.arange(len(waiting.all_keys))))
    keys, counts, ages = (values.tolist() for values in waiting.entries(places))
    return dict(zip(keys, zip(counts, ages, strict=True), strict=True))


def test_each_key_has_its_own_threshold() -> None:
    waiting = WaitingKeys()
    assert waiting.sight(array(5, 6), array(2, 3)).tolist() == [0, 0]
    assert waiting.sight(array(6, 5, 7), array(3, 2, 2)).tolist() == [0, 2, 0]
    assert entries(waiting) == {6: (2, 0), 7: (1, 0)}
    # one that was admitted, and lost its row, counts from the beginning
    assert waiting.sight(array(5), array(2)).tolist() == [0]
    assert waiting.sight(array(5), array(2)).tolist() == [2]


def test_what_is_not_met_between_two_calls_is_forgotten() -> None:
    waiting = WaitingKeys()
    waiting.sight(array(1, 2, 3), array(9, 9, 9))
    waiting.forget(np.ones(3, dtype=bool))  # all were met since the beginning
    waiting.sight(array(2), array(9))
    waiting.forget(waiting.all_keys != 3)  # 3 is of a table that forgets nothing
    assert entries(waiting) == {2: (2, 1), 3: (1, 1)}


def test_restored_counts_go_on() -> None:
    waiting = WaitingKeys()
    waiting.restore(array(4, 8), np.array([2, 1], dtype=np.int32), np.zeros(2, dtype=np.int32))
    assert waiting.sight(array(4, 8), array(3, 3)).tolist() == [3, 0]


def test_restored_keys_are_forgotten_when_the_old_ones_would_have_been() -> None:
    old, new = WaitingKeys(), WaitingKeys()
    old.sight(array(1, 2), array(9, 9))
    old.forget(np.ones(2, dtype=bool))
    old.sight(array(2), array(9))
    new.restore(*old.entries(np.arange(2)))
    assert entries(new) == entries(old) == {1: (1, 1), 2: (2, 0)}
    for waiting in (old, new):
        waiting.forget(np.ones(2, dtype=bool))
        assert entries(waiting) == {2: (2, 1)}


def test_memory_is_small_and_comes_back() -> None:
    waiting = WaitingKeys()
    keys = np.arange(50_000, dtype=np.int64) * 7
    waiting.sight(keys, np.full(50_000, 3))
    assert waiting.nbytes <= 50_000 * 32
    waiting.forget(np.ones(len(waiting.all_keys), dtype=bool))
    waiting.forget(np.ones(len(waiting.all_keys), dtype=bool))
    assert len(waiting.all_keys) == 0
    assert waiting.nbytes < 10_000
