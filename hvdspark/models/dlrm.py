"""Deep learning recommendation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hvdspark.errors import ConfigurationError
from hvdspark.models.architecture import Architecture
from hvdspark.models.mlp import hidden_layers, mlp


class DLRM(Architecture):
    """The numbers become one more vector by a bottom MLP; a top MLP gets it and all dot products of two vectors.

    M. Naumov and others: Deep Learning Recommendation Model for Personalization and Recommendation Systems, 2019,
    arXiv:1906.00091. Without numbers there is no bottom MLP.

    Args:
        hidden: units of the top MLP's hidden layers.
        dropout: share of the hidden units that a training step leaves out.
        bottom: units of the bottom MLP's hidden layers, before its last one of `dim`; None: as `hidden`.

    Raises:
        ConfigurationError: a single field without numbers, for which there is no product.
    """

    uses_weights: ClassVar[bool] = False
    above: Tensor

    def __init__(
        self,
        numbers: int,
        fields: int,
        dim: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        bottom: Sequence[int] | None = None,
    ) -> None:
        super().__init__(numbers, fields, dim)
        if numbers == 0 and fields == 1:
            raise ConfigurationError("one field alone has no interactions", where="DLRM", hint="use wide_deep")
        self.hidden, self.dropout = tuple(hidden), dropout
        self.bottom = None if bottom is None else tuple(bottom)
        vectors = fields + (numbers > 0)
        row, column = torch.triu_indices(vectors, vectors, offset=1)
        # Positions above the diagonal in a flattened [vectors, vectors] matrix; follows from the arguments.
        self.register_buffer("above", row * vectors + column, persistent=False)
        bottom_sizes = (*(self.hidden if self.bottom is None else self.bottom), dim)
        self.bottom_layers = hidden_layers(numbers, bottom_sizes, dropout) if numbers else None
        self.top = mlp(len(self.above) + (dim if numbers else 0), self.hidden, dropout)

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        if self.bottom_layers is None:
            return self.top(self.products(vectors)).squeeze(1)
        dense = self.bottom_layers(numbers)  # [rows, D]
        products = self.products(torch.cat([dense.unsqueeze(1), vectors], dim=1))
        return self.top(torch.cat([dense, products], dim=1)).squeeze(1)

    def summands(self) -> Sequence[nn.Module]:
        return [self.top[-1]]

    def products(self, vectors: Tensor) -> Tensor:
        """Dot product of vector i with vector j for all i < j, row by row of that triangle: [rows, pairs]."""
        matrix = torch.bmm(vectors, vectors.transpose(1, 2))  # [rows, vectors, vectors]
        # One flat index: two-dimensional indexing of the triangle takes 1.4 times as long there and back on a CPU.
        return matrix.flatten(1).index_select(1, self.above)
