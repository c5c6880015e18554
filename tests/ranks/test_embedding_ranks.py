"""Sharded tables over real Horovod processes."""

from __future__ import annotations

from pathlib import Path

from hvdspark.collectives import run_threaded
from tests.ranks.embedding_cases import WIRES, on_rank
from tests.ranks.gang import run_ranks


def test_horovod_ranks_are_threads_bit_for_bit(tmp_path: Path) -> None:
    expected = run_threaded(2, on_rank)
    outcomes = run_ranks(on_rank, 2, tmp_path)
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert outcome.error is None, outcome.output
        assert outcome.value == wanted
    assert len({expected[0][wire] for wire in WIRES}) == len(WIRES)
    assert {outcome.value["bad id"] for outcome in outcomes} == {expected[0]["bad id"]}
    assert "100 (in feature 'page' of table 'pages', rank 1)" in expected[0]["bad id"]
