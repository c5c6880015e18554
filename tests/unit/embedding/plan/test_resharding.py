"""How many bytes another number of ranks moves, and that no division moves fewer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hvdspark.embedding.files.shards import FILE_BUCKETS, file_ranges
from hvdspark.embedding.ids.hashing import BUCKETS, bucket_range
from hvdspark.embedding.plan.resharding import FloatArray, bytes_by_run, runs_of_ranks

BYTES = 1000  # of a bucket


def files_of(rank: int, world_size: int, width: int = FILE_BUCKETS) -> list[tuple[int, int, int]]:
    ranges = file_ranges(*bucket_range(rank, world_size), width)
    return [(first, stop, (stop - first) * BYTES) for first, stop in ranges]


def moved(old: int, new: int, hosts: list[int | None], width: int = FILE_BUCKETS) -> float:
    """Share of the bytes that have to move.

    Args:
        hosts: for each new rank the old one whose host it is on; None: another one.
    """
    whole = bytes_by_run([file for rank in range(old) for file in files_of(rank, old, width)], new)
    at_hand = np.stack(
        [np.zeros(new) if host is None else bytes_by_run(files_of(host, old, width), new) for host in hosts]
    )
    runs = runs_of_ranks(at_hand)
    assert sorted(runs) == list(range(new))
    return float(whole.sum() - sum(at_hand[rank, run] for rank, run in enumerate(runs))) / (BUCKETS * BYTES)


@pytest.mark.parametrize("hosts", itertools.permutations([0, 1, None]))
def test_from_two_ranks_to_three_no_more_moves_than_38_percent(hosts: tuple[int | None, ...]) -> None:
    assert moved(2, 3, list(hosts)) <= 0.38
    assert moved(2, 3, list(hosts), width=1) == pytest.approx(1 / 3, abs=0.001)  # less cannot be


@pytest.mark.parametrize(
    ("old", "new", "hosts", "share"),
    [
        (1, 2, [None, 0], 0.5),
        (2, 1, [1], 0.5),
        (2, 2, [1, 0], 0.0),  # the hosts are the same, and rank 0 is on the other one
        (3, 3, [2, None, 0], 1 / 3),  # one was replaced
        (3, 2, [2, 0], 1 / 3),  # the middle one has gone
        (3, 2, [1, 0], 1 / 2),  # the last one: its neighbour has the half of what it gets, rank 0's the rest
        (4, 8, [None, 0, None, 1, None, 2, None, 3], 0.5),
        (4, 5, [0, 1, 2, 3, None], 0.3),
    ],
)
def test_what_other_changes_move(old: int, new: int, hosts: list[int | None], share: float) -> None:
    assert moved(old, new, hosts, width=1) == pytest.approx(share, abs=0.001)


@given(st.integers(1, 12), st.data())
@settings(max_examples=25, deadline=None)
def test_a_larger_world_moves_at_most_a_fifth_more_than_new_hosts_get(old: int, data: st.DataObject) -> None:
    new = data.draw(st.integers(old, 12))
    hosts: list[int | None] = [*range(old), *[None] * (new - old)]
    data.draw(st.randoms()).shuffle(hosts)
    assert moved(old, new, hosts, width=8) <= 1 - old / new + 0.22


@given(st.integers(1, 5).flatmap(lambda size: arrays(np.float64, (size, size), elements=st.integers(0, 1000))))
@settings(max_examples=50, deadline=None)
def test_no_other_division_has_more_at_hand(at_hand: FloatArray) -> None:
    def saved(runs: tuple[int, ...]) -> float:
        return float(sum(at_hand[rank, run] for rank, run in enumerate(runs)))

    best = max(map(saved, itertools.permutations(range(len(at_hand)))))
    assert saved(runs_of_ranks(at_hand)) == best


@pytest.mark.parametrize("size", [1, 2, 7])
def test_where_nothing_is_saved_each_rank_has_the_run_of_its_number(size: int) -> None:
    assert runs_of_ranks(np.zeros((size, size))) == tuple(range(size))
    assert runs_of_ranks(np.full((size, size), 1e12)) == tuple(range(size)), "ranks of one host"


def test_files_are_read_whole() -> None:
    assert bytes_by_run([(0, 2049, 10), (4095, 4096, 5)], 2).tolist() == [10.0, 15.0]
