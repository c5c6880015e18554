"""Wide & Deep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hvdspark.models.architecture import Architecture
from hvdspark.models.lr import LogisticRegression
from hvdspark.models.mlp import mlp


class WideAndDeep(Architecture):
    """logit = first order (wide) + MLP of all vectors and numbers (deep).

    H.-T. Cheng and others: Wide & Deep Learning for Recommender Systems, DLRS 2016, arXiv:1606.07792. The paper's wide
    part also has products of categories that its authors chose by hand; here such a product is one more field.

    Args:
        hidden, dropout: units of the MLP's hidden layers, and the share of them that a training step leaves out.
    """

    puts_side_by_side: ClassVar[bool] = True

    def __init__(
        self, numbers: int, fields: int, dim: int | Sequence[int], hidden: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__(numbers, fields, dim)
        self.hidden, self.dropout = tuple(hidden), dropout
        self.wide = LogisticRegression(numbers, fields)
        self.deep = mlp(self.vector_width + numbers, self.hidden, dropout)

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        features = torch.cat([vectors.flatten(1), numbers], dim=1)  # [rows, vector_width + N]
        return self.wide(numbers, vectors, weights) + self.deep(features).squeeze(1)

    def summands(self) -> Sequence[nn.Module]:
        return [self.wide, self.deep[-1]]
