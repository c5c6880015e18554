"""Batches, and the windows of rows that they are drawn from.

All scalar columns of one dtype lie side by side in one block [rows, columns]; a "fixed" column is a block of its own
[rows, width]. A row is then a few contiguous stretches of memory: drawing rows at random reads whole cache lines, where
drawing from 40 separate columns would touch 40 of them for each row (6 times slower on 26 int64 columns).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvdspark.specs import ColumnSpec

_NUMPY: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "int64": np.dtype(np.int64)}
# Rows that are interleaved at a time: the stretch of the block that is written to stays in the processor's cache.
_TILE_ROWS = 1024


@dataclass(frozen=True)
class Ragged:
    """An array column whose rows have different lengths.

    Attributes:
        values: [n], the elements of all rows one after the other; float32 or int64.
        offsets: [rows + 1] int64; row i holds values[offsets[i] : offsets[i + 1]].
    """

    values: Tensor
    offsets: Tensor

    def to(self, device: str | torch.device) -> Ragged:
        return Ragged(self.values.to(device, non_blocking=True), self.offsets.to(device, non_blocking=True))

    def pin_memory(self) -> Ragged:
        return Ragged(self.values.pin_memory(), self.offsets.pin_memory())


@dataclass(frozen=True)
class Layout:
    """Where each column lies in the blocks.

    Attributes:
        blocks: dtype and number of columns of each block.
        slots: for each column of layout "scalar" or "fixed" its block, and its position there (None: all of it).
        ragged: dtype of each ragged column.
    """

    blocks: tuple[tuple[np.dtype[Any], int], ...]
    slots: Mapping[str, tuple[int, int | None]]
    ragged: Mapping[str, np.dtype[Any]]

    @classmethod
    def of(cls, columns: Sequence[ColumnSpec]) -> Layout:
        blocks: list[tuple[np.dtype[Any], int]] = []
        slots: dict[str, tuple[int, int | None]] = {}
        for dtype in _NUMPY:
            scalars = [column.name for column in columns if column.layout == "scalar" and column.dtype == dtype]
            slots |= {name: (len(blocks), position) for position, name in enumerate(scalars)}
            blocks += [(_NUMPY[dtype], len(scalars))] if scalars else []
        for column in columns:
            if column.layout == "fixed":
                assert column.width is not None
                slots[column.name] = (len(blocks), None)
                blocks.append((_NUMPY[column.dtype], column.width))
        ragged = {column.name: _NUMPY[column.dtype] for column in columns if column.layout == "ragged"}
        return cls(
            tuple(blocks), {column.name: slots[column.name] for column in columns if column.name in slots}, ragged
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the blocks; ragged columns not counted."""
        return sum(dtype.itemsize * width for dtype, width in self.blocks)

    def views(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        """The columns as views of the blocks: [rows] for a scalar, [rows, width] for a fixed column."""
        return {
            name: blocks[block] if position is None else blocks[block][:, position]
            for name, (block, position) in self.slots.items()
        }


@dataclass(frozen=True)
class Batch:
    """Rows of one rank at one step.

    Attributes:
        columns: by name: [rows] for a scalar column, [rows, width] for a fixed one, else Ragged. Scalars are views
            of a common block and may have a stride.
        rows: number of rows, may be 0.
    """

    columns: dict[str, Tensor | Ragged]
    rows: int
    _layout: Layout = dataclasses.field(repr=False)
    _blocks: tuple[Tensor, ...] = dataclasses.field(repr=False)

    @classmethod
    def of_blocks(cls, layout: Layout, blocks: Sequence[Tensor], ragged: Mapping[str, Ragged], rows: int) -> Batch:
        return cls({**layout.views(blocks), **ragged}, rows, layout, tuple(blocks))

    def _map(self, change: str, *arguments: object, **options: object) -> Batch:
        blocks = [getattr(block, change)(*arguments, **options) for block in self._blocks]
        ragged = {name: getattr(self.columns[name], change)(*arguments) for name in self._layout.ragged}
        return Batch.of_blocks(self._layout, blocks, ragged, self.rows)

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device: one copy for each block rather than for each column, asynchronous if pinned."""
        return self._map("to", device, non_blocking=True)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where copies to a CUDA device are asynchronous."""
        return self._map("pin_memory")


@dataclass(frozen=True)
class RaggedRows:
    """Consecutive rows of a ragged column: values [n] and offsets [rows + 1] with offsets[0] = 0."""

    values: np.ndarray
    offsets: np.ndarray


class Window:
    """A number of consecutive rows of a rank's stream, held in memory until they are drawn.

    Different threads may fill different rows at the same time.
    """

    def __init__(self, layout: Layout, rows: int, buffers: Sequence[np.ndarray] = ()) -> None:
        self.layout, self.rows = layout, rows
        # Fresh memory costs as much as filling it, so buffers of drained windows are used again.
        reuse = len(buffers) == len(layout.blocks) and (not buffers or len(buffers[0]) >= rows)
        self.buffers = list(buffers) if reuse else [np.empty((rows, width), dtype) for dtype, width in layout.blocks]
        self._ragged: dict[str, dict[int, RaggedRows]] = {name: {} for name in layout.ragged}
        self._joined: dict[str, RaggedRows] = {}

    def fill(self, start: int, rows: int, dense: Mapping[str, np.ndarray], ragged: Mapping[str, RaggedRows]) -> None:
        """Put rows in.

        Args:
            start, rows: which rows of the window; at least one.
            dense: for each scalar column [rows], for each fixed column [rows, width].
            ragged: for each ragged column its rows.
        """
        scalars: dict[int, list[tuple[int, np.ndarray]]] = {}
        for name, (block, position) in self.layout.slots.items():
            if position is None:
                self.buffers[block][start : start + rows] = dense[name]
            else:
                scalars.setdefault(block, []).append((position, dense[name]))
        for block, columns in scalars.items():
            target = self.buffers[block]
            for low in range(0, rows, _TILE_ROWS):
                high = min(low + _TILE_ROWS, rows)
                tile = target[start + low : start + high]
                for position, values in columns:
                    tile[:, position] = values[low:high]
        for name, part in ragged.items():
            self._ragged[name][start] = part

    def draw(self, rows: np.ndarray | slice) -> Batch:
        """The given rows, in the given order, as a batch that shares no memory with the window."""
        if isinstance(rows, slice):
            count = rows.stop - rows.start
            blocks = [torch.from_numpy(buffer[rows].copy()) for buffer in self.buffers]
            index = np.arange(rows.start, rows.stop)
        else:
            count, index = len(rows), rows
            # mode="clip" spares a copy; the indexes are ours and in range.
            blocks = [torch.from_numpy(np.take(buffer, rows, axis=0, mode="clip")) for buffer in self.buffers]
        ragged = {name: self._draw_ragged(name, index) for name in self.layout.ragged}
        return Batch.of_blocks(self.layout, blocks, ragged, count)

    def _draw_ragged(self, name: str, index: np.ndarray) -> Ragged:
        if name not in self._joined:
            self._joined[name] = _join(self._ragged[name], self.layout.ragged[name])
        joined = self._joined[name]
        starts = joined.offsets[index]
        lengths = joined.offsets[index + 1] - starts
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        # Element j of the result comes from where its row starts, plus its place in the row.
        source = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(torch.from_numpy(joined.values[source]), torch.from_numpy(offsets))


def _join(parts: Mapping[int, RaggedRows], dtype: np.dtype[Any]) -> RaggedRows:
    ordered = [parts[start] for start in sorted(parts)]
    bases = np.cumsum([0, *(len(part.values) for part in ordered)])
    offsets = [np.zeros(1, np.int64)]
    offsets += [part.offsets[1:] + base for part, base in zip(ordered, bases, strict=False)]
    values = [np.zeros(0, dtype), *(part.values for part in ordered)]
    return RaggedRows(np.concatenate(values), np.concatenate(offsets))
