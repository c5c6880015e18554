"""A rank's rows on their way from row groups to windows. Pure.

Windows hold whole batches, so that no batch has to be put together from two of them. A row group may reach over several
windows, and a window over several row groups. Nothing is held of the windows that are over or far ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hvdspark.data.feed.batch import Layout
from hvdspark.data.feed.plan import EpochPlan
from hvdspark.specs import ColumnSpec, RowGroup


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a row group, which go to rows [at, at + stop - start) of a window."""

    start: int
    stop: int
    window: int
    at: int


@dataclass(frozen=True)
class WindowPlan:
    """One window.

    Attributes:
        number: counts from 0.
        batches: the rows of its batches.
        reads: row groups to read, in this order, and which rows of each; pieces of one row group ascend. If the first
            is the last of the window before, reading goes on in the same row group.
    """

    number: int
    batches: list[int]
    reads: list[tuple[RowGroup, list[Piece]]]

    @property
    def rows(self) -> int:
        return sum(self.batches)


class Stream:
    """A rank's rows in the order of its plan.

    Args:
        columns: what is read of each row.
        groups: all row groups of the split.
        plan: the rank's plan.
        window_rows: rows of a window, at most, but at least one batch.

    Attributes:
        layout, columns: what is read.
        steps: number of batches.
        capacity: no window has more rows.
    """

    def __init__(
        self, columns: Sequence[ColumnSpec], groups: Sequence[RowGroup], plan: EpochPlan, window_rows: int
    ) -> None:
        self.columns, self.layout = columns, Layout.of(columns)
        self.steps = len(plan.batch_rows)
        self.capacity = max(min(window_rows, plan.batch_rows.total), plan.batch_rows.most)
        self._groups, self._plan, self._window_rows = groups, plan, window_rows

    def windows(self) -> Iterator[WindowPlan]:
        """The windows one after the other."""
        ranges = iter(self._plan.ranges)
        group, start, stop = -1, 0, 0
        for number, batches in enumerate(self._batches()):
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
            yield WindowPlan(number, batches, reads)

    def _batches(self) -> Iterator[list[int]]:
        """The rows of the batches of each window."""
        batches: list[int] = []
        filled = 0
        for rows in self._plan.batch_rows:
            # Batches without rows take no room, but there may be any number of them.
            if (filled and filled + rows > self._window_rows) or len(batches) > self._window_rows:
                yield batches
                batches, filled = [], 0
            batches.append(rows)
            filled += rows
        if batches:
            yield batches
