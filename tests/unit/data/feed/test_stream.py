"""How a rank's rows are cut into windows of whole batches."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.feed.plan import EpochPlan, plan_epoch
from hvdspark.data.feed.stream import Stream
from hvdspark.data.readers.protocol import Piece
from hvdspark.specs import ColumnSpec, RowGroup

COLUMNS = [ColumnSpec("x", "float32", "scalar")]


def groups_of(counts: list[int]) -> list[RowGroup]:
    return [RowGroup(f"{index}.parquet", 0, rows) for index, rows in enumerate(counts)]


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), max_size=8),
    batch=st.integers(1, 60),
    world=st.integers(1, 4),
    window_rows=st.integers(1, 120),
    shuffle=st.booleans(),
)
def test_every_row_of_the_plan_has_its_place(
    counts: list[int], batch: int, world: int, window_rows: int, shuffle: bool
) -> None:
    for rank in range(world):
        plan = plan_epoch(counts, batch, world, rank, 1, 0, shuffle)
        if not plan.streams:
            assert plan.batch_rows.total == 0
            continue
        (own,) = plan.streams
        stream = Stream(COLUMNS, groups_of(counts), own, window_rows)
        windows = list(stream.windows())
        assert [window.number for window in windows] == list(range(len(windows)))
        assert [rows for window in windows for rows in window.batches] == list(plan.batch_rows)
        assert stream.steps == len(plan.batch_rows)
        assert all(window.rows <= stream.capacity for window in windows)
        assert all(
            window.rows <= window_rows or len([rows for rows in window.batches if rows]) == 1 for window in windows
        )
        planned = [(part.group, row) for part in own.ranges() for row in range(part.start, part.stop)]
        placed, read = [], []
        for window in windows:
            at = 0
            for group, pieces in window.reads:
                read.append(group.path)
                for piece in pieces:
                    assert (piece.window, piece.at) == (window.number, at), "a window is filled without gaps"
                    placed += [(int(group.path.split(".")[0]), row) for row in range(piece.start, piece.stop)]
                    at += piece.stop - piece.start
            assert at == window.rows
        assert placed == planned
        begun = [path for path, _ in itertools.groupby(read)]
        assert len(set(begun)) == len(begun), "each row group is read once"


Row = tuple[int, int]  # number of the row group, row of it


def batches_of(plan: EpochPlan, counts: list[int], window_rows: int) -> list[list[Row]]:
    """The rows of a rank's batches, as windows that do not shuffle give them."""
    parts = []
    for stream in plan.streams:
        of_stream: list[list[Row]] = []
        for window in Stream(COLUMNS, groups_of(counts), stream, window_rows).windows():
            rows = [
                (int(group.path.split(".")[0]), row)
                for group, pieces in window.reads
                for piece in pieces
                for row in range(piece.start, piece.stop)
            ]
            ends = list(itertools.accumulate(window.batches))
            for end, count, taken in zip(ends, window.batches, window.taken, strict=True):
                if taken is not None:
                    of_stream.append(rows[end - count : end][slice(*taken)])
        assert len(of_stream) == len(plan.batch_rows)
        parts.append(of_stream)
    batches = [[row for part in parts for row in part[step]] for step in range(len(plan.batch_rows))]
    assert tuple(map(len, batches)) == plan.batch_rows
    return batches


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), max_size=8),
    batch=st.integers(1, 60),
    begun=st.integers(1, 6),
    cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 6)), max_size=3),
    window_rows=st.integers(1, 120),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_an_epoch_goes_on_at_any_world_size(
    counts: list[int],
    batch: int,
    begun: int,
    cuts: list[tuple[int, int]],
    window_rows: int,
    shuffle: bool,
    epoch: int,
) -> None:
    total = sum(counts)

    def gang(world: int, step: int) -> list[list[list[Row]]]:
        start = min(step * batch, total)
        plans = [plan_epoch(counts, batch, world, rank, 1, epoch, shuffle, start, begun) for rank in range(world)]
        return [batches_of(plan, counts, window_rows) for plan in plans]

    whole = gang(begun, 0)
    expected = [{row for rank in whole for row in rank[step]} for step in range(len(whole[0]))]
    consumed: list[Row] = []
    cuts = [(0, begun), *sorted((min(step, len(expected)), world) for step, world in cuts)]
    for (step, world), (end, _) in zip(cuts, [*cuts[1:], (len(expected), 0)], strict=True):
        ranks = gang(world, step)
        for number in range(step, end):
            rows = [row for rank in ranks for row in rank[number - step]]
            assert set(rows) == expected[number], "the global batches are those of the epoch without interruption"
            consumed += rows
        if world == begun:
            assert ranks == [rank[step:] for rank in whole], "and those of each rank"
    assert sorted(consumed) == [(group, row) for group, rows in enumerate(counts) for row in range(rows)]


def test_what_it_costs_to_go_on() -> None:
    counts, batch, window_rows = [100] * 400, 64, 512

    def rows_read(world: int, begun: int, step: int) -> list[int]:
        plans = [plan_epoch(counts, batch, world, rank, 1, 0, True, step * batch, begun) for rank in range(world)]
        streams = [
            [Stream(COLUMNS, groups_of(counts), stream, window_rows) for stream in plan.streams] for plan in plans
        ]
        assert max(map(len, streams)) <= -(-begun // world) + 1
        return [sum(window.rows for stream in rank for window in stream.windows()) for rank in streams]

    left = 40_000 - 300 * batch
    for world, begun in ((4, 4), (2, 4), (3, 4), (1, 4), (63, 64), (4, 3), (8, 4)):
        read = rows_read(world, begun, 300)
        assert sum(read) <= (left + begun * window_rows) * (world + begun - 1) / begun
        assert max(read) <= (left / begun + window_rows) * (-(-begun // world) + 1)
    assert sum(rows_read(4, 4, 625)) == 0, "nothing is left"


def test_a_row_group_over_several_windows() -> None:
    first, second = groups_of([10, 4])
    (plan,) = plan_epoch([10, 4], 3, 1, 0, 0, 0, False).streams
    windows = list(Stream(COLUMNS, [first, second], plan, 6).windows())
    assert [window.batches for window in windows] == [[3, 3], [3, 3], [2]]
    assert [window.reads for window in windows] == [
        [(first, [Piece(0, 6, 0, 0)])],
        [(first, [Piece(6, 10, 1, 0)]), (second, [Piece(0, 2, 1, 4)])],
        [(second, [Piece(2, 4, 2, 0)])],
    ]


def test_a_batch_larger_than_a_window_is_a_window() -> None:
    (plan,) = plan_epoch([10], 8, 1, 0, 0, 0, False).streams
    assert [window.batches for window in Stream(COLUMNS, groups_of([10]), plan, 3).windows()] == [[8], [2]]
