from __future__ import annotations

import math

import pytest

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.collectives.agreement import broadcast_json, raise_together, ranks_where
from hvdspark.errors import CheckpointError, StoreError


def test_every_rank_gets_the_roots_value() -> None:
    def body(collective: ThreadedCollective) -> object:
        return broadcast_json(collective, {"from": collective.rank, "words": "ü" * collective.rank}, 2, "value")

    assert run_threaded(3, body) == [{"from": 2, "words": "üü"}] * 3


def test_nan_survives() -> None:
    values = run_threaded(2, lambda collective: broadcast_json(collective, [math.nan, None, 1.5], 0, "value"))
    assert all(math.isnan(value[0]) and value[1:] == [None, 1.5] for value in values)


def test_ranks_where_names_the_ranks() -> None:
    assert run_threaded(3, lambda collective: ranks_where(collective, collective.rank != 1, "flag")) == [[0, 2]] * 3


def test_no_error_raises_nothing() -> None:
    run_threaded(2, lambda collective: raise_together(collective, None, CheckpointError, "writing"))


def test_one_ranks_error_is_raised_on_all_in_its_words() -> None:
    def body(collective: ThreadedCollective) -> Exception:
        mine = StoreError("disk full", value="/x") if collective.rank == 1 else None
        with pytest.raises((StoreError, CheckpointError)) as caught:
            raise_together(collective, mine, CheckpointError, "writing")
        return caught.value

    first, own, last = run_threaded(3, body)
    assert isinstance(own, StoreError)
    for other in (first, last):
        assert isinstance(other, CheckpointError)
        assert str(other) == "rank 1 failed in writing: StoreError: disk full: '/x'"
