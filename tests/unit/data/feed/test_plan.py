"""The plan of an epoch: every row exactly once, equal steps, few readers for each row group."""

from __future__ import annotations

import collections
import itertools
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.feed import plan as plan_module
from hvdspark.data.feed.plan import EpochPlan, RowRange, plan_epoch
from hvdspark.errors import ConfigurationError
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroups, from_json, to_json

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


def ranges_of(plan: EpochPlan) -> Iterator[RowRange]:
    """What the rank reads, stream by stream."""
    return itertools.chain.from_iterable(stream.ranges() for stream in plan.streams)


def rows_of(plan: EpochPlan) -> list[tuple[int, int]]:
    return [(piece.group, row) for piece in ranges_of(plan) for row in range(piece.start, piece.stop)]


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
        assert sum(plan.batch_rows) == sum(piece.rows for piece in ranges_of(plan))
        assert all(piece.rows > 0 for piece in ranges_of(plan))
        assert plan.global_rows == gang[0].global_rows
    for step in range(steps):
        shares = [plan.batch_rows[step] for plan in gang]
        assert sum(shares) == gang[0].global_rows[step], "shares add up to the global batch"
        assert max(shares) - min(shares) <= 1, "shares are even"
    assert all(rows == batch for rows in gang[0].global_rows[:-1])
    if shuffle:
        readers = collections.Counter(group for plan in gang for group in {piece.group for piece in ranges_of(plan)})
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


def test_many_row_groups_are_added_up_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "_BLOCK", 3)
    for counts in (LAYOUTS["many tiny"], [0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0], list(range(20))):
        for world in (1, 3, 8):
            for epoch in range(4):
                check(counts, 7, world, True, epoch=epoch)


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

    def ranges(seed: int, epoch: int) -> list[list[RowRange]]:
        return [list(ranges_of(plan)) for plan in plans(counts, 64, 4, seed=seed, epoch=epoch)]

    first = ranges(seed=3, epoch=0)
    assert first == ranges(seed=3, epoch=0)
    assert first != ranges(seed=4, epoch=0)
    assert first != ranges(seed=3, epoch=1)
    assert ranges(seed=0, epoch=0) != ranges(seed=0, epoch=1), "seed 0 is a seed"


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
    assert tuple(ranges_of(alone)) == (RowRange(0, 0, 100), RowRange(1, 0, 50))


@pytest.mark.parametrize(
    ("counts", "batch", "world", "rank", "says"),
    [
        ([5], 0, 1, 0, "batch_size"),
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


@pytest.mark.parametrize(
    ("start_row", "streams", "says"),
    [(3, None, "start_row"), (-5, None, "-5"), (15, None, "start_row"), (5, 0, "streams")],
)
def test_an_epoch_goes_on_after_a_whole_batch(start_row: int, streams: int | None, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        plan_epoch([7, 5], 5, 2, 0, 0, 0, True, start_row, streams)


@pytest.mark.parametrize("shuffle", [True, False])
def test_nothing_is_left_of_an_epoch(shuffle: bool) -> None:
    for world in (1, 2, 5):
        for plan in plans([7, 5], 5, world, start_row=12, streams=2, shuffle=shuffle):
            assert len(plan.batch_rows) == len(plan.global_rows) == 0
            assert rows_of(plan) == []


@pytest.mark.slow
def test_a_hundred_thousand_files_are_a_small_thing() -> None:
    files, groups_of_a_file, ranks = 100_000, 33, 256
    rows = 10**11 // (files * groups_of_a_file) + np.random.default_rng(0).integers(-99, 99, files * groups_of_a_file)
    paths = [f"data/hvdspark_split=0/part-{file:05d}-c6d4f1b8-1111-2222-c000.snappy.parquet" for file in range(files)]
    starts = np.arange(files + 1) * groups_of_a_file
    columns = (ColumnSpec("x", "float32", "scalar"),)
    written = DatasetSpec("d", columns, RowGroups(paths, starts, np.tile(np.arange(groups_of_a_file), files), rows))
    text = to_json(written)
    assert len(text) < 10e6, "what travels to each rank"

    started = time.process_time()
    dataset = from_json(DatasetSpec, text)
    gang = [plan_epoch(dataset.train.rows, 1 << 21, ranks, rank, 0, 0, shuffle=True) for rank in (0, 100)]
    ordered = plan_epoch(dataset.train.rows, 1 << 21, ranks, 100, 0, 0, shuffle=False)
    late = 40_000 << 21  # four fifths of the epoch
    rest = [plan_epoch(dataset.train.rows, 1 << 21, ranks, 100, 0, 0, True, late, streams) for streams in (256, 300)]
    first = [next(ranges_of(plan)) for plan in (*gang, ordered, *rest)]
    assert time.process_time() - started < 5 * 2.0, "2 s for each of five plans; it takes 0.1 s"
    assert dataset == written
    assert all(piece.rows <= dataset.train[piece.group].rows for piece in first)
    assert all(plan.batch_rows.total == sum(piece.rows for piece in ranges_of(plan)) for plan in gang)

    tracemalloc.start()
    try:
        held = from_json(DatasetSpec, text)
        plan = plan_epoch(held.train.rows, 1 << 21, ranks, 100, 0, 1, shuffle=True)
        assert sum(piece.rows for piece in ranges_of(plan)) == plan.batch_rows.total
        assert tracemalloc.get_traced_memory()[0] < 50e6
    finally:
        tracemalloc.stop()
