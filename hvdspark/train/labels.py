"""Labels and weights of rows, as columns of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hvdspark.artifact.classes import BINARY, CLASS_INDEX
from hvdspark.checks import label_in_words
from hvdspark.data.feed.batch import Batch, Ragged, Sparse
from hvdspark.errors import DataError
from hvdspark.specs import DatasetSpec
from hvdspark.train.loss import RowLoss


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


def label_ends(dataset: DatasetSpec, labels: Sequence[str]) -> dict[str, Tensor]:
    """The smallest and the largest value, [2], of each label that is one number and of which they are known."""
    columns = [dataset.column(name) for name in labels]
    return {
        column.name: torch.tensor([column.minimum, column.maximum])
        for column in columns
        if column.layout == "scalar" and column.minimum is not None and column.maximum is not None
    }


def warnings_about_labels(loss: RowLoss, labels: Sequence[str], ends: Mapping[str, Tensor]) -> list[str]:
    """A sentence for each label of classes of which there is one alone.

    Args:
        ends: as `label_ends` gives them.
    """
    return [
        f"all labels in {name!r} are {label_in_words(ends[name][0].item())}: there is nothing to tell apart. "
        "Look at the filters before the fit"
        for position, name in enumerate(labels)
        if name in ends and ends[name][0] == ends[name][1] and loss.name(position) in (*BINARY, *CLASS_INDEX)
    ]
