"""A rank's rows on their way from row groups to windows. Pure.

Windows hold whole batches, so that no batch has to be put together from two of them. A row group may reach over several
windows, and a window over several row groups; each row group is read once.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvdspark.data.batch import Layout
from hvdspark.data.plan import EpochPlan
from hvdspark.specs import ColumnSpec, RowGroup


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a row group, which go to rows [at, at + stop - start) of a window."""

    start: int
    stop: int
    window: int
    at: int


class Stream:
    """A rank's rows in the order of its plan.

    Args:
        columns: what is read of each row.
        groups: all row groups of the split.
        plan: the rank's plan.
        window_rows: rows of a window, at most, but at least one batch.

    Attributes:
        layout, columns: what is read.
        groups: row groups to read, in this order.
        pieces: for each of them, where its rows go.
        window_batches: for each window the rows of its batches.
    """

    def __init__(
        self, columns: Sequence[ColumnSpec], groups: Sequence[RowGroup], plan: EpochPlan, window_rows: int
    ) -> None:
        self.columns, self.layout = columns, Layout.of(columns)
        self.window_batches: list[list[int]] = []
        filled = 0
        for rows in plan.batch_rows:
            if not self.window_batches or (filled and filled + rows > window_rows):
                self.window_batches.append([])
                filled = 0
            self.window_batches[-1].append(rows)
            filled += rows
        self.groups: list[RowGroup] = []
        self.pieces: list[list[Piece]] = []
        ends = iter(enumerate(np.cumsum([sum(batches) for batches in self.window_batches]).tolist()))
        position, window, window_start, window_end, previous = 0, -1, 0, 0, -1
        for part in plan.ranges:
            if part.group != previous:  # ranges of one row group that follow each other are read once
                self.groups.append(groups[part.group])
                self.pieces.append([])
                previous = part.group
            start = part.start
            while start < part.stop:
                while window_end <= position:
                    window_start = window_end
                    window, window_end = next(ends)
                rows = min(part.stop - start, window_end - position)
                self.pieces[-1].append(Piece(start, start + rows, window, position - window_start))
                start, position = start + rows, position + rows

    def groups_up_to(self, window: int) -> int:
        """How many row groups start in this window or before."""
        return bisect.bisect_right(self.pieces, window, key=lambda pieces: pieces[0].window)
