"""Sharded tables over real Horovod processes."""

from __future__ import annotations

from hvdspark.collectives import run_threaded
from tests.ranks.embedding_cases import WIRES, on_rank, train_by_hand
from tests.ranks.gang import run_ranks


def test_horovod_ranks_are_threads_bit_for_bit() -> None:
    expected = run_threaded(2, on_rank)
    results = run_ranks(on_rank, 2)
    for result, wanted in zip(results, expected, strict=True):
        assert result == wanted
    assert not expected[0]["broken promises"]
    assert len({expected[0][wire] for wire in WIRES}) == len(WIRES)
    assert {result["bad id"] for result in results} == {expected[0]["bad id"]}
    assert "it is larger (in feature 'page' of table 'pages', rank 1)" in expected[0]["bad id"]


def test_in_a_loop_of_ones_own() -> None:
    results = run_ranks(train_by_hand, 2, rows=100)
    assert results[0][0] == results[1][0]
    assert results[0][0][-1] < 0.2 * results[0][0][0]
    counts = [count for _, count in results]
    assert sum(counts) == 100
    assert min(counts) > 0
