"""What the loader asks of a reader of row groups, and what it gets. `tests/unit/data/readers` holds readers to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvdspark.specs import ColumnSpec, RowGroup
from hvdspark.store import Store


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a row group, which go to rows [at, at + stop - start) of a window.

    The number of the window is the caller's, who finds it in the pieces that come back.
    """

    start: int
    stop: int
    window: int
    at: int


@dataclass(frozen=True)
class RaggedRows:
    """Consecutive rows of a ragged column: values [n] and offsets [rows + 1]; row i is values[offsets[i]:offsets[i+1]].

    offsets[0] may be greater than 0.
    """

    values: NDArray[Any]
    offsets: NDArray[Any]

    def rows(self, start: int, stop: int) -> RaggedRows:
        """Rows [start, stop); the values are shared."""
        return RaggedRows(self.values, self.offsets[start : stop + 1])

    def take(self, order: NDArray[Any]) -> RaggedRows:
        """The given rows, in the given order."""
        starts, lengths = self.offsets[order], np.diff(self.offsets)[order]
        offsets = np.zeros(len(order) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Element j comes from where its row starts, plus its place in the row.
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return RaggedRows(self.values[source], offsets)


def pack_entries(positions: NDArray[Any], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """[n] int64 of what is kept of sparse vectors: the position in the upper 32 bits, the float32 in the lower ones.

    So that it travels as one ragged column, whatever is done to its rows.
    """
    return (positions.astype(np.int64) << 32) | values.view(np.uint32)


@dataclass(frozen=True)
class Columns:
    """Some rows, column by column.

    Attributes:
        dense: by name, [rows] for a scalar column, [rows, width] for a fixed one; dtypes are those of the specs.
        ragged: by name; of sparse columns `pack_entries`.
    """

    dense: Mapping[str, NDArray[Any]]
    ragged: Mapping[str, RaggedRows]


# Called with a piece, columns that hold its rows, and the row of the row group that is the first of these columns.
Sink = Callable[[Piece, Columns, int], None]


class RowGroupReader(Protocol):
    """Reads row groups ahead of the caller and hands their rows to a sink.

    Row groups are decoded in slices of `slices.slice_rows` rows from their beginning on, and a piece reaches the sink
    in parts, cut where slices end. So the parts, and with them what the loader's shuffle draws, are the same for every
    reader, and what is in memory does not depend on the length of a row group.

    The sink may run in threads of the reader; its calls may overlap and come in any order.
    """

    def read(self, group: RowGroup, pieces: Sequence[Piece]) -> None:
        """Have these rows read; pieces ascend. In the row group of the call before, reading goes on where it is."""

    def wait_for_one(self) -> Sequence[Piece]:
        """Wait until all that one call of `read` asked for has gone through the sink; the pieces of that call.

        Each call of `read` is returned once, in any order. The wait is bounded.

        Raises:
            StoreError: a file cannot be read, or nothing arrives in time, or reading was stopped.
            DataError: it is not what the dataset's spec says.
        """

    def stop(self) -> None:
        """End a `wait_for_one` that another thread may be in, and all reading after the current slices."""

    def join(self) -> None:
        """Wait, for a limited time, until nothing runs any more, and close all files. Call `stop` first."""


class OpenReader(Protocol):
    """How the loader makes a reader."""

    def __call__(self, store: Store, dataset: str, columns: Sequence[ColumnSpec], sink: Sink) -> RowGroupReader:
        """A reader of these columns of the dataset in a directory of the store."""
