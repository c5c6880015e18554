from __future__ import annotations

import numpy as np

from hvdspark.embedding.admission import WaitingKeys


def array(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_each_key_has_its_own_threshold() -> None:
    waiting = WaitingKeys()
    assert waiting.sight(array(5, 6), array(2, 3)).tolist() == [0, 0]
    assert waiting.sight(array(6, 5, 7), array(3, 2, 2)).tolist() == [0, 2, 0]
    keys, counts = waiting.items()
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == {6: 2, 7: 1}
    # one that was admitted, and lost its row, counts from the beginning
    assert waiting.sight(array(5), array(2)).tolist() == [0]
    assert waiting.sight(array(5), array(2)).tolist() == [2]


def test_what_is_not_met_between_two_calls_is_forgotten() -> None:
    waiting = WaitingKeys()
    waiting.sight(array(1, 2, 3), array(9, 9, 9))
    waiting.forget(np.ones(3, dtype=bool))  # all were met since the beginning
    waiting.sight(array(2), array(9))
    waiting.forget(waiting.all_keys != 3)  # 3 is of a table that forgets nothing
    keys, counts = waiting.items()
    assert keys.tolist() == [2, 3]
    assert counts.tolist() == [2, 1]


def test_restored_counts_go_on() -> None:
    waiting = WaitingKeys()
    waiting.restore(array(4, 8), np.array([2, 1], dtype=np.int32))
    assert waiting.sight(array(4, 8), array(3, 3)).tolist() == [3, 0]


def test_memory_is_small_and_comes_back() -> None:
    waiting = WaitingKeys()
    keys = np.arange(50_000, dtype=np.int64) * 7
    waiting.sight(keys, np.full(50_000, 3))
    assert waiting.nbytes <= 50_000 * 32
    waiting.forget(np.ones(len(waiting.all_keys), dtype=bool))
    waiting.forget(np.ones(len(waiting.all_keys), dtype=bool))
    assert len(waiting.all_keys) == 0
    assert waiting.nbytes < 10_000
