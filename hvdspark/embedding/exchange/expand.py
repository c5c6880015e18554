"""How rows of a table become the outputs of features, and how the gradients of outputs become those of rows.

Bit for bit what `nn.Embedding` and `nn.EmbeddingBag` give; but the backward pass has its ids sorted already, or counts
them, where torch's own sorts them in comparisons or goes from id to id.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hvdspark.embedding.graphs import outside_graphs
from hvdspark.embedding.ids.distinct import Unique, sum_equal, whole_table
from hvdspark.embedding.ids.jagged import Jagged
from hvdspark.embedding.kernels.stacked import sum_stacked, take_stacked
from hvdspark.embedding.phases import BACKWARD, EXPAND, in_phase


@dataclass(frozen=True)
class Source:
    """Rows that some features read.

    Attributes:
        rows: [U, D]; where the outputs are to be made, so that what moves to a GPU is distinct.
        distinct: of the ids of all cells, one feature after the other; None: the ids are the numbers of the rows.
        cells: of each feature.
        columns: the place of each feature among all features of the model.
        apart: no two features have a row in common, as where each has a table of its own.
    """

    rows: Tensor
    distinct: Unique | None
    cells: Sequence[Jagged]
    columns: Sequence[int]
    apart: bool = False

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
    @outside_graphs
    @in_phase(BACKWARD)
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts = [_of_each_row(*pair) for pair in zip(gradients, ctx.source.cells, strict=True)]
        places = _places(ctx.source.cells, parts)
        together = parts[0] if len(parts) == 1 else torch.cat(parts)
        return sum_equal(together, _readers(ctx.source), places), None


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sources: Sequence[Source], *rows: Tensor) -> Tensor:
        ctx.sources = sources
        fields = sorted(_fields(sources, [source.rows.detach() for source in sources]), key=lambda field: field.column)
        return take_stacked([field.rows for field in fields], [field.numbers for field in fields])

    @staticmethod
    @once_differentiable
    @outside_graphs
    @in_phase(BACKWARD)
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        sums = [torch.zeros_like(source.rows) for source in ctx.sources]
        apart = [pair for pair in zip(ctx.sources, sums, strict=True) if pair[0].apart]
        fields = sorted(_fields(*zip(*apart, strict=True)), key=lambda field: field.column) if apart else []
        sum_stacked(
            gradient,
            [field.column for field in fields],
            [field.numbers for field in fields],
            [field.rows for field in fields],
        )
        for place, source in enumerate(ctx.sources):
            if not source.apart:
                parts = [gradient[:, column] for column in source.columns]
                sums[place] = sum_equal(torch.cat(parts), _readers(source))
        return None, *sums


class _Field(NamedTuple):
    """A column of a stack, and the rows that it reads, or whose gradients are summed: [U, D], int64 [batch]."""

    column: int
    rows: Tensor
    numbers: Tensor


def _fields(sources: Sequence[Source], rows: Sequence[Tensor]) -> Iterator[_Field]:
    for source, some in zip(sources, rows, strict=True):
        for column, index in zip(source.columns, source.indexes(), strict=True):
            yield _Field(column, some, index)


def _readers(source: Source) -> Unique:
    """Which ids read each of the rows."""
    if source.distinct is not None:
        return source.distinct
    return whole_table(torch.cat([cells.ids for cells in source.cells]), len(source.rows))


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
