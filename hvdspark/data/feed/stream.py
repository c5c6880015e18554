"""A stream's rows on their way from row groups to windows. Pure.

Windows hold whole batches, so that no batch has to be put together from two of them. A row group may reach over several
windows, and a window over several row groups. Nothing is held of the windows that are over or far ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvdspark.data.feed.batch import Layout
from hvdspark.data.feed.plan import RowRange, StreamPlan
from hvdspark.data.readers.protocol import Piece
from hvdspark.specs import ColumnSpec, RowGroup


@dataclass(frozen=True)
class WindowPlan:
    """One window.

    Attributes:
        number: counts from 0.
        batches: the rows of its batches.
        taken: the rows [low, high) of each batch that are wanted; of a batch that was taken already none, and None.
        reads: row groups to read, in this order, and which rows of each; pieces of one row group ascend. If the first
            is the last of the window before, reading goes on in the same row group.
    """

    number: int
    batches: list[int]
    taken: list[tuple[int, int] | None]
    reads: list[tuple[RowGroup, list[Piece]]]

    @property
    def rows(self) -> int:
        return sum(self.batches)


class Stream:
    """A stream's rows in the order of its plan.

    Args:
        columns: what is read of each row.
        groups: all row groups of the split.
        plan: of the stream.
        window_rows: rows of a window, at most, but at least one batch.

    Attributes:
        layout, columns: what is read.
        steps: number of batches that are wanted.
        capacity: no window has more rows.
    """

    def __init__(
        self, columns: Sequence[ColumnSpec], groups: Sequence[RowGroup], plan: StreamPlan, window_rows: int
    ) -> None:
        self.columns, self.layout = columns, Layout.of(columns)
        self.steps = len(plan.batch_rows) - plan.skipped
        self.capacity = max(min(window_rows, plan.batch_rows.total), plan.batch_rows.most)
        self._groups, self._plan, self._window_rows = groups, plan, window_rows

    def windows(self) -> Iterator[WindowPlan]:
        """The windows one after the other, from the one on that holds the first batch wanted."""
        plan = self._plan
        ranges: Iterator[RowRange] | None = None
        group, start, stop = -1, 0, 0
        for number, step, row, batches in self._batches():
            if step + len(batches) <= plan.skipped:
                continue
            if ranges is None:
                ranges = plan.ranges(row)
            reads: list[tuple[RowGroup, list[Piece]]] = []
            rows, at, reading = sum(batches), 0, -1
            while at < rows:
                if start == stop:
                    part = next(ranges)
                    group, start, stop = part.group, part.start, part.stop
                if group != reading:  # ranges of one row group that follow each other are one read
                    reads.append((self._groups[group], []))
                    reading = group
                taken = min(stop - start, rows - at)
                reads[-1][1].append(Piece(start, start + taken, number, at))
                start, at = start + taken, at + taken
            steps = range(step, step + len(batches))
            wanted = [plan.taken(index) if index >= plan.skipped else None for index in steps]
            yield WindowPlan(number, batches, wanted, reads)

    def _batches(self) -> Iterator[tuple[int, int, int, list[int]]]:
        """Of each window its number, the numbers of its first batch and of that one's first row, and the batches."""
        every, full = self._plan.batch_rows, self._plan.batch_rows.full
        # All windows but the last two have as many batches as the first one.
        in_window = max(1, self._window_rows // full) if full else self._window_rows + 1
        number = self._plan.skipped // in_window
        step = number * in_window
        row = step * full
        batches: list[int] = []
        filled = 0
        for rows in itertools.islice(every, step, None):
            # Batches without rows take no room, but there may be any number of them.
            if (filled and filled + rows > self._window_rows) or len(batches) > self._window_rows:
                yield number, step, row, batches
                number, step, row = number + 1, step + len(batches), row + filled
                batches, filled = [], 0
            batches.append(rows)
            filled += rows
        if batches:
            yield number, step, row, batches
