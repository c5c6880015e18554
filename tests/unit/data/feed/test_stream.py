"""How a rank's rows are cut into windows of whole batches."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.feed.plan import plan_epoch
from hvdspark.data.feed.stream import Piece, Stream
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
        stream = Stream(COLUMNS, groups_of(counts), plan, window_rows)
        windows = list(stream.windows())
        assert [window.number for window in windows] == list(range(len(windows)))
        assert [rows for window in windows for rows in window.batches] == list(plan.batch_rows)
        assert stream.steps == len(plan.batch_rows)
        assert all(window.rows <= stream.capacity for window in windows)
        assert all(
            window.rows <= window_rows or len([rows for rows in window.batches if rows]) == 1 for window in windows
        )
        planned = [(part.group, row) for part in plan.ranges for row in range(part.start, part.stop)]
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


def test_a_row_group_over_several_windows() -> None:
    first, second = groups_of([10, 4])
    plan = plan_epoch([10, 4], 3, 1, 0, 0, 0, False)
    windows = list(Stream(COLUMNS, [first, second], plan, 6).windows())
    assert [window.batches for window in windows] == [[3, 3], [3, 3], [2]]
    assert [window.reads for window in windows] == [
        [(first, [Piece(0, 6, 0, 0)])],
        [(first, [Piece(6, 10, 1, 0)]), (second, [Piece(0, 2, 1, 4)])],
        [(second, [Piece(2, 4, 2, 0)])],
    ]


def test_a_batch_larger_than_a_window_is_a_window() -> None:
    plan = plan_epoch([10], 8, 1, 0, 0, 0, False)
    assert [window.batches for window in Stream(COLUMNS, groups_of([10]), plan, 3).windows()] == [[8], [2]]
