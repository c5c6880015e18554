"""The plan of an epoch: every row exactly once, equal steps, few readers for each row group."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.plan import EpochPlan, RowRange, plan_epoch
from hvdspark.errors import ConfigurationError

LAYOUTS = {
    "even": [10, 10, 10, 10],
    "uneven files": [1, 97, 3, 0, 40, 12, 1, 1],
    "one giant row group": [1000],
    "fewer row groups than ranks": [5, 7],
    "empty row groups": [0, 0, 11, 0, 6, 0],
    "one row": [1],
    "many tiny": [1] * 57,
    "nothing": [],
    "only empty row groups": [0, 0],
}


def plans(counts: list[int], batch: int, world: int, **kwargs: object) -> list[EpochPlan]:
    arguments = {"seed": 7, "epoch": 0, "shuffle": True} | kwargs
    return [plan_epoch(counts, batch, world, rank, **arguments) for rank in range(world)]  # type: ignore[arg-type]


def rows_of(plan: EpochPlan) -> list[tuple[int, int]]:
    return [(piece.group, row) for piece in plan.ranges for row in range(piece.start, piece.stop)]


def batches_of(plan: EpochPlan) -> list[list[tuple[int, int]]]:
    rows, batches, position = rows_of(plan), [], 0
    for size in plan.batch_rows:
        batches.append(rows[position : position + size])
        position += size
    assert position == len(rows)
    return batches


def check(counts: list[int], batch: int, world: int, shuffle: bool, seed: int = 7, epoch: int = 0) -> None:
    gang = plans(counts, batch, world, shuffle=shuffle, seed=seed, epoch=epoch)
    every_row = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    assert sorted(row for plan in gang for row in rows_of(plan)) == every_row, "every row exactly once"
    steps = -(-len(every_row) // batch)
    for plan in gang:
        assert len(plan.batch_rows) == len(plan.global_rows) == steps, "the same number of steps on every rank"
        assert sum(plan.batch_rows) == sum(piece.rows for piece in plan.ranges)
        assert all(piece.rows > 0 for piece in plan.ranges)
        assert plan.global_rows == gang[0].global_rows
    for step in range(steps):
        shares = [plan.batch_rows[step] for plan in gang]
        assert sum(shares) == gang[0].global_rows[step], "shares add up to the global batch"
        assert max(shares) - min(shares) <= 1, "shares are even"
    assert all(rows == batch for rows in gang[0].global_rows[:-1])
    if shuffle:
        readers = collections.Counter(group for plan in gang for group in {piece.group for piece in plan.ranges})
        assert sum(readers.values()) <= sum(1 for count in counts if count) + world - 1, "read amplification"


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_exactly_once_for_1_to_8_ranks(layout: str, shuffle: bool) -> None:
    for world in range(1, 9):
        for batch in (1, 2, 7, 64, 5000):
            check(LAYOUTS[layout], batch, world, shuffle)


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 60), max_size=12),
    batch=st.integers(1, 120),
    world=st.integers(1, 8),
    shuffle=st.booleans(),
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_every_row_exactly_once_for_any_layout(
    counts: list[int], batch: int, world: int, shuffle: bool, seed: int, epoch: int
) -> None:
    check(counts, batch, world, shuffle, seed, epoch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_shuffle_global_batches_do_not_depend_on_the_world_size(layout: str) -> None:
    counts = LAYOUTS[layout]
    for batch in (1, 3, 16, 500):
        (alone,) = plans(counts, batch, 1, shuffle=False)
        expected = batches_of(alone)
        assert [row for rows in expected for row in rows] == sorted(rows_of(alone)), "file order"
        for world in range(2, 9):
            parts = [batches_of(plan) for plan in plans(counts, batch, world, shuffle=False)]
            assert [[row for part in step for row in part] for step in zip(*parts, strict=True)] == expected


def test_shuffle_is_a_function_of_seed_and_epoch() -> None:
    counts = [100] * 40
    first = plans(counts, 64, 4, seed=3, epoch=0)
    assert first == plans(counts, 64, 4, seed=3, epoch=0)
    assert first != plans(counts, 64, 4, seed=4, epoch=0)
    assert first != plans(counts, 64, 4, seed=3, epoch=1)
    assert plans(counts, 64, 4, seed=0, epoch=0) != plans(counts, 64, 4, seed=0, epoch=1), "seed 0 is a seed"


def test_rows_move_between_ranks_from_epoch_to_epoch() -> None:
    counts = [10] * 64
    owners = [
        {row: rank for rank, plan in enumerate(plans(counts, 32, 4, epoch=epoch)) for row in rows_of(plan)}
        for epoch in range(2)
    ]
    moved = sum(owners[0][row] != owners[1][row] for row in owners[0])
    assert moved > len(owners[0]) // 2  # three quarters are expected


def test_ranges_that_touch_are_one_range() -> None:
    (alone,) = plans([100, 50], 7, 1, shuffle=False)
    assert alone.ranges == (RowRange(0, 0, 100), RowRange(1, 0, 50))


@pytest.mark.parametrize(
    ("counts", "batch", "world", "rank", "says"),
    [
        ([5], 0, 1, 0, "batchSize"),
        ([5], -3, 1, 0, "-3"),
        ([5], 1, 2, 2, "a world of 2 ranks"),
        ([5], 1, 2, -1, "-1"),
        ([5], 1, 0, 0, "a world of 0 ranks"),
        ([5, -2], 1, 1, 0, "-2"),
    ],
)
def test_bad_arguments_are_named(counts: list[int], batch: int, world: int, rank: int, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        plan_epoch(counts, batch, world, rank, 0, 0, True)
