"""Batches of rows, and how their columns lie in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.specs import ColumnSpec

_NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in ("float32", "float64", "int64")}
_TORCH = {"float32": torch.float32, "float64": torch.float64, "int64": torch.int64}


@dataclass(frozen=True)
class Ragged:
    """An array column whose rows have different lengths.

    Attributes:
        values: [n], the elements of all rows one after the other; float32 or int64, and uint8 where rows hold bytes.
        offsets: [rows + 1] int64; row i holds values[offsets[i] : offsets[i + 1]].
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def joined(cls, parts: Iterable[tuple[NDArray[Any], NDArray[Any]]], dtype: np.dtype[Any]) -> Ragged:
        """The rows of all parts, each given as values and offsets; offsets may start above 0. Shares no memory."""
        values, offsets, base = [np.empty(0, dtype)], [np.zeros(1, np.int64)], 0
        for part_values, part_offsets in parts:
            first, last = part_offsets[0], part_offsets[-1]
            values.append(part_values[first:last])
            offsets.append(part_offsets[1:] + (base - first))
            base += last - first
        return cls(torch.from_numpy(np.concatenate(values)), torch.from_numpy(np.concatenate(offsets)))

    def to(self, device: str | torch.device) -> Ragged:
        """The column on another device, asynchronously if it is pinned."""
        return Ragged(self.values.to(device, non_blocking=True), self.offsets.to(device, non_blocking=True))

    def pin_memory(self) -> Ragged:
        """The column in page-locked memory."""
        return Ragged(self.values.pin_memory(), self.offsets.pin_memory())


@dataclass(frozen=True)
class Sparse:
    """A column of vectors of which few values are not 0. It is made dense where the module is called, and not before.

    Attributes:
        entries: of each row what is kept, as `readers.protocol.pack_entries` packs it.
        width: elements of each vector.
    """

    entries: Ragged
    width: int

    def dense(self) -> Tensor:
        """[rows, width] float32, where the column is."""
        packed, offsets = self.entries.values, self.entries.offsets
        rows = len(offsets) - 1
        dense = torch.zeros(rows * self.width, dtype=torch.float32, device=packed.device)
        if len(packed):
            # On every machine that torch runs on, the lower half of an integer comes first.
            values, positions = packed.view(torch.float32)[0::2], packed.view(torch.int32)[1::2]
            starts = torch.arange(rows, device=packed.device) * self.width
            # What comes of it is known, so that a GPU need not be waited for.
            row = starts.repeat_interleave(offsets.diff(), output_size=len(packed))
            dense[row + positions] = values
        return dense.view(rows, self.width)

    def to(self, device: str | torch.device) -> Sparse:
        """The column on another device, asynchronously if it is pinned."""
        return Sparse(self.entries.to(device), self.width)


Column: TypeAlias = Tensor | Ragged | Sparse


def rows_of(column: Column, first: int, last: int) -> Column:
    """Rows [first, last) of a column."""
    if isinstance(column, Sparse):
        return Sparse(_rows_of_ragged(column.entries, first, last), column.width)
    return _rows_of_ragged(column, first, last) if isinstance(column, Ragged) else column[first:last]


def _rows_of_ragged(column: Ragged, first: int, last: int) -> Ragged:
    offsets = column.offsets[first : last + 1]
    return Ragged(column.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0])


@dataclass(frozen=True)
class Layout:
    """Which columns share a block of memory.

    All scalar columns of one dtype are the rows of one block [columns, rows], so that many columns are copied, pinned
    and sent to a device at once, and each is contiguous. A "fixed" column is a block [rows, width] of its own.

    Attributes:
        scalars: for each scalar block its dtype and the names of its columns.
        fixed: name, dtype and width of each fixed column; their blocks follow the scalar blocks.
        ragged: name and dtype of each ragged column, and of the entries of each sparse one.
        sparse: name and width of each sparse column.
    """

    scalars: tuple[tuple[np.dtype[Any], tuple[str, ...]], ...]
    fixed: tuple[tuple[str, np.dtype[Any], int], ...]
    ragged: tuple[tuple[str, np.dtype[Any]], ...]
    sparse: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, columns: Sequence[ColumnSpec]) -> Layout:
        scalars = []
        for name, dtype in _NUMPY.items():
            names = tuple(column.name for column in columns if column.layout == "scalar" and column.dtype == name)
            scalars += [(dtype, names)] if names else []
        return cls(
            tuple(scalars),
            tuple(
                (column.name, _NUMPY[column.dtype], column.width or 0) for column in columns if column.layout == "fixed"
            ),
            tuple(
                (column.name, _NUMPY["int64" if column.layout == "sparse" else column.dtype])
                for column in columns
                if column.layout in ("ragged", "sparse")
            ),
            tuple((column.name, column.width or 0) for column in columns if column.layout == "sparse"),
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in the blocks; ragged columns not counted."""
        scalars = sum(dtype.itemsize * len(names) for dtype, names in self.scalars)
        return scalars + sum(dtype.itemsize * width for _, dtype, width in self.fixed)

    def allocate(self, rows: int) -> list[Tensor]:
        """Blocks for this many rows, with any content."""
        # torch asks for plain memory. numpy asks the kernel for huge pages, and finding some can take longer than all
        # else.
        shapes = [
            *((dtype, (len(names), rows)) for dtype, names in self.scalars),
            *((dtype, (rows, width)) for _, dtype, width in self.fixed),
        ]
        return [torch.empty(shape, dtype=_TORCH[dtype.name]) for dtype, shape in shapes]

    def views(self, blocks: Sequence[Tensor]) -> dict[str, Tensor]:
        """The columns as views of the blocks: [rows] for a scalar, [rows, width] for a fixed column."""
        views = {
            name: row
            for (_, names), block in zip(self.scalars, blocks, strict=False)
            for name, row in zip(names, block, strict=True)
        }
        return views | {
            name: block for (name, _, _), block in zip(self.fixed, blocks[len(self.scalars) :], strict=True)
        }


@dataclass(frozen=True)
class Batch:
    """Rows of one rank at one step.

    Attributes:
        columns: by name: [rows] for a scalar column, [rows, width] for a fixed one, else Ragged or Sparse. All
            contiguous.
        rows: number of rows, may be 0.
    """

    columns: dict[str, Column]
    rows: int
    _layout: Layout = dataclasses.field(repr=False)
    _blocks: tuple[Tensor, ...] = dataclasses.field(repr=False)

    @classmethod
    def of_blocks(cls, layout: Layout, blocks: Sequence[Tensor], ragged: Mapping[str, Ragged], rows: int) -> Batch:
        """Args: ragged: by name, of sparse columns their entries."""
        columns: dict[str, Column] = {**layout.views(blocks), **ragged}
        columns |= {name: Sparse(ragged[name], width) for name, width in layout.sparse if name in ragged}
        return cls(columns, rows, layout, tuple(blocks))

    @classmethod
    def joined(cls, layout: Layout, parts: Sequence[Batch]) -> Batch:
        """The rows of all parts, one part after the other; a single part is given back as it is."""
        if len(parts) == 1:
            return parts[0]
        none = Batch.of_blocks(layout, layout.allocate(0), {}, 0)
        rows_dim = [1] * len(layout.scalars) + [0] * len(layout.fixed)
        blocks = [
            torch.cat([part._blocks[number] for part in (none, *parts)], dim) for number, dim in enumerate(rows_dim)
        ]
        ragged = {}
        for name, dtype in layout.ragged:
            columns = [column for part in parts for other, column in part._ragged() if other == name]
            ragged[name] = Ragged.joined([(column.values.numpy(), column.offsets.numpy()) for column in columns], dtype)
        return cls.of_blocks(layout, blocks, ragged, sum(part.rows for part in parts))

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device: one copy for each block instead of each column, asynchronous if pinned."""
        blocks = [block.to(device, non_blocking=True) for block in self._blocks]
        return Batch.of_blocks(
            self._layout, blocks, {name: part.to(device) for name, part in self._ragged()}, self.rows
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from where copies to a CUDA device are asynchronous."""
        blocks = [block.pin_memory() for block in self._blocks]
        ragged = {name: part.pin_memory() for name, part in self._ragged()}
        return Batch.of_blocks(self._layout, blocks, ragged, self.rows)

    def _ragged(self) -> list[tuple[str, Ragged]]:
        entries = [
            (name, column.entries if isinstance(column, Sparse) else column) for name, column in self.columns.items()
        ]
        return [(name, column) for name, column in entries if isinstance(column, Ragged)]
