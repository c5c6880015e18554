"""How rows of a table become the outputs of features, and how the gradients of outputs become those of rows.

Bit for bit what `nn.Embedding` and `nn.EmbeddingBag` give; but the backward pass has its ids sorted already, or counts
them, where torch's own sorts them in comparisons or goes from id to id.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hvdspark.embedding.ids.distinct import Unique, sum_equal, whole_table
from hvdspark.embedding.ids.jagged import Jagged
from hvdspark.embedding.kernels.stacked import sum_stacked
from hvdspark.embedding.phases import BACKWARD, EXPAND, in_phase


@dataclass(frozen=True)
class Source:
    """Rows that some features read.

    Attributes:
        rows: [U, D]; where the outputs are to be made, so that what moves to a GPU is distinct.
        distinct: of the ids of all cells, one feature after the other; None: the ids are the numbers of the rows.
        cells: of each feature.
        columns: the place of each feature among all features of the model.
    """

    rows: Tensor
    distinct: Unique | None
    cells: Sequence[Jagged]
    columns: Sequence[int]

    def indexes(self, device: torch.device | None = None) -> Sequence[Tensor]:
        """The numbers of the rows that each feature reads: int64 [n] for each; on the CPU, or moved there at once."""
        sizes = [len(feature.ids) for feature in self.cells]
        if self.distinct is None:
            every = [feature.ids for feature in self.cells]
            return every if device is None else torch.cat(every).to(device).split(sizes)
        return (self.distinct.inverse if device is None else self.distinct.inverse.to(device)).split(sizes)


def outputs(rows: Tensor, index: Tensor, cells: Jagged) -> Tensor:
    """A feature's output from a table's rows: [U, D], int64 [n] -> [*cells.shape, D]. Empty bags give zeros."""
    if cells.offsets is None:
        return F.embedding(index, rows).view(*cells.shape, rows.shape[1])
    return F.embedding_bag(index, rows, cells.offsets, mode=cells.pooling, include_last_offset=True)


@in_phase(EXPAND)
def take(sources: Sequence[Source]) -> list[Tensor]:
    """Outputs of all features in their order, differentiable in the rows of all sources."""
    taken: dict[int, Tensor] = {}
    for source in sources:
        device = source.rows.device
        if device.type == "cpu":
            values = _Take.apply(source.rows, source)
        else:
            pairs = zip(source.indexes(device), source.cells, strict=True)
            values = [outputs(source.rows, index, cells.to(device)) for index, cells in pairs]
        taken.update(zip(source.columns, values, strict=True))
    return [taken[column] for column in range(len(taken))]


@in_phase(EXPAND)
def stack(sources: Sequence[Source], device: torch.device | None = None) -> Tensor:
    """`torch.stack(take(sources), dim=1)`, bit for bit, with the same gradients.

    Where each feature has one id in a row, vectors and gradients are moved once instead of twice.

    Args:
        device: where what was taken on several devices meets.
    """
    if _have_one_id(sources):
        return _Stack.apply(sources, *(source.rows for source in sources))
    return torch.stack([value if device is None else value.to(device) for value in take(sources)], dim=1)


def _have_one_id(sources: Sequence[Source]) -> bool:
    """In each row, for each feature; and rows of one kind."""
    cells = [feature for source in sources for feature in source.cells]
    kinds = {(source.rows.shape[1], source.rows.dtype, source.rows.device.type) for source in sources}
    shapes = {feature.shape for feature in cells}
    pooled = any(feature.offsets is not None for feature in cells)
    return not pooled and len(kinds) == len(shapes) == 1 and len(shapes.pop()) == 1 and kinds.pop()[2] == "cpu"


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Source) -> tuple[Tensor, ...]:
        ctx.source = source
        return tuple(outputs(rows, *pair) for pair in zip(source.indexes(), source.cells, strict=True))

    @staticmethod
    @once_differentiable
    @in_phase(BACKWARD)
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts = [_of_each_row(*pair) for pair in zip(gradients, ctx.source.cells, strict=True)]
        places = _places(ctx.source.cells, parts)
        together = parts[0] if len(parts) == 1 else torch.cat(parts)
        return sum_equal(together, _readers([ctx.source]), places), None


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sources: Sequence[Source], *rows: Tensor) -> Tensor:
        ctx.sources = sources
        fields = sum(len(source.columns) for source in sources)
        stacked = rows[0].new_empty(*sources[0].cells[0].shape, fields, rows[0].shape[1])
        for source in sources:
            for column, index in zip(source.columns, source.indexes(), strict=True):
                torch.index_select(source.rows.detach(), 0, index, out=stacked[:, column])
        return stacked

    @staticmethod
    @once_differentiable
    @in_phase(BACKWARD)
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        sums: dict[int, Tensor] = {}
        # Tables that are there as a whole are counted together: many are small.
        whole = [source for source in ctx.sources if source.distinct is None]
        for together in [*([source] for source in ctx.sources if source.distinct is not None), whole]:
            if together:
                columns = [column for source in together for column in source.columns]
                readers = _readers(together)
                summed = sum_stacked(gradient, readers.inverse, columns, len(readers.keys))
                parts = summed.split([len(source.rows) for source in together])
                sums.update(zip(map(id, together), parts, strict=True))
        return None, *(sums[id(source)] for source in ctx.sources)


def _readers(sources: Sequence[Source]) -> Unique:
    """Which ids read each of the rows: of one source, or of tables that are there as a whole, one after the other."""
    if sources[0].distinct is not None:
        return sources[0].distinct
    firsts = itertools.accumulate((len(source.rows) for source in sources), initial=0)
    ids = [cells.ids + first for source, first in zip(sources, firsts, strict=False) for cells in source.cells]
    return whole_table(torch.cat(ids), sum(len(source.rows) for source in sources))


def _of_each_row(gradient: Tensor, cells: Jagged) -> Tensor:
    """What each id of a row of cells gets, once for each row: [*shape, D] -> [rows, D]."""
    if cells.offsets is not None and cells.pooling == "mean":
        gradient = gradient / cells.offsets.diff().clamp(min=1).unsqueeze(1)
    return gradient.reshape(-1, gradient.shape[-1])


def _places(cells: Sequence[Jagged], parts: Sequence[Tensor]) -> Tensor | None:
    """The row of the concatenated `parts` that each id of all cells has its gradient in; None: row l for id l."""
    if all(feature.offsets is None for feature in cells):
        return None
    firsts = itertools.accumulate((len(part) for part in parts), initial=0)
    places = []
    for feature, first, part in zip(cells, firsts, parts, strict=False):
        rows = torch.arange(first, first + len(part))
        places.append(rows if feature.offsets is None else rows.repeat_interleave(feature.offsets.diff()))
    return torch.cat(places)
