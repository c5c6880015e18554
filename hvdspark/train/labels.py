"""Labels and weights of rows, as columns of a batch."""

from __future__ import annotations

from torch import Tensor

from hvdspark.data.feed.batch import Batch, Ragged, Sparse
from hvdspark.errors import DataError


def tensor_column(batch: Batch, name: str) -> Tensor:
    """A label or weight column, which must have the same number of values in every row."""
    column = batch.columns[name]
    if isinstance(column, Sparse):
        return column.dense()
    if isinstance(column, Ragged):
        raise DataError("arrays of different lengths cannot be a label or a weight", where=name)
    return column


def weight_column(batch: Batch, name: str) -> Tensor:
    """The weights of rows, float32; where the column is a feature, too, it may hold integers."""
    return tensor_column(batch, name).float()
