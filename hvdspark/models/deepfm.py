"""DeepFM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvdspark.models.architecture import Architecture
from hvdspark.models.fm import FactorizationMachine
from hvdspark.models.mlp import mlp


class DeepFM(Architecture):
    """logit = factorization machine + MLP, both of the same vectors.

    H. Guo and others: DeepFM: A Factorization-Machine based Neural Network for CTR Prediction, IJCAI 2017,
    arXiv:1703.04247. The MLP gets the numbers themselves beside the vectors of the fields.

    Args:
        hidden, dropout: units of the MLP's hidden layers, and the share of them that a training step leaves out.
    """

    def __init__(self, numbers: int, fields: int, dim: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__(numbers, fields, dim)
        self.hidden, self.dropout = tuple(hidden), dropout
        self.machine = FactorizationMachine(numbers, fields, dim)
        self.deep = mlp(fields * dim + numbers, self.hidden, dropout)

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        features = torch.cat([vectors.flatten(1), numbers], dim=1)  # [rows, F * D + N]
        return self.machine(numbers, vectors, weights) + self.deep(features).squeeze(1)

    def summands(self) -> Sequence[nn.Module]:
        return [self.machine.first_order, self.deep[-1]]
