"""How a rank's rows are cut into windows of whole batches."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.data.plan import plan_epoch
from hvdspark.data.stream import Piece, Stream
from hvdspark.specs import ColumnSpec, RowGroup

COLUMNS = [ColumnSpec("x", "float32", "scalar")]


def groups_of(counts: list[int]) -> list[RowGroup]:
    return [RowGroup(f"{index}.parquet", 0, rows, rows) for index, rows in enumerate(counts)]


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
        assert [rows for window in stream.window_batches for rows in window] == list(plan.batch_rows)
        assert all(
            sum(window) <= window_rows or len([rows for rows in window if rows]) == 1
            for window in stream.window_batches
        )
        planned = [(part.group, row) for part in plan.ranges for row in range(part.start, part.stop)]
        starts = [sum(map(sum, stream.window_batches[:window])) for window in range(len(stream.window_batches))]
        placed = {}
        for group, pieces in zip(stream.groups, stream.pieces, strict=True):
            for piece in pieces:
                assert 0 <= piece.at < piece.at + piece.stop - piece.start <= sum(stream.window_batches[piece.window])
                for row in range(piece.start, piece.stop):
                    position = starts[piece.window] + piece.at + row - piece.start
                    placed[position] = (int(group.path.split(".")[0]), row)
        assert [placed[position] for position in sorted(placed)] == planned
        assert len({group.path for group in stream.groups}) == len(stream.groups), "each row group is read once"


def test_a_row_group_over_several_windows() -> None:
    plan = plan_epoch([10, 4], 3, 1, 0, 0, 0, False)
    stream = Stream(COLUMNS, groups_of([10, 4]), plan, 6)
    assert stream.window_batches == [[3, 3], [3, 3], [2]]
    assert stream.pieces == [[Piece(0, 6, 0, 0), Piece(6, 10, 1, 0)], [Piece(0, 2, 1, 4), Piece(2, 4, 2, 0)]]
    assert [stream.groups_up_to(window) for window in range(3)] == [1, 2, 2]


def test_a_batch_larger_than_a_window_is_a_window() -> None:
    plan = plan_epoch([10], 8, 1, 0, 0, 0, False)
    assert Stream(COLUMNS, groups_of([10]), plan, 3).window_batches == [[8], [2]]
