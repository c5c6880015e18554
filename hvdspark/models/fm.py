"""Factorization machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvdspark.models.architecture import Architecture
from hvdspark.models.lr import LogisticRegression


class FactorizationMachine(Architecture):
    """logit = first order + sum_{i<j} <z_i, z_j>, where z are the vectors of the fields, and x_n v_n of the numbers.

    S. Rendle: Factorization Machines, ICDM 2010. In linear time by its lemma 3.1:
    sum_{i<j} <z_i, z_j> = (|sum_i z_i|^2 - sum_i |z_i|^2) / 2.
    """

    def __init__(self, numbers: int, fields: int, dim: int) -> None:
        super().__init__(numbers, fields, dim)
        self.first_order = LogisticRegression(numbers, fields)
        # v of the numbers [N, D]; begins small, as the vectors of the fields do.
        self.factors = nn.Parameter(torch.randn(numbers, dim) * 0.01) if numbers else None

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        # The difference of two near squares: bfloat16 has too few digits for it.
        with torch.autocast(numbers.device.type, enabled=False):
            total = vectors.sum(dim=1)  # [rows, D]
            own = vectors.square().sum(dim=(1, 2))  # [rows]
            if self.factors is not None:
                total = total + numbers @ self.factors
                own = own + numbers.square() @ self.factors.square().sum(dim=1)
            pairs = (total.square().sum(dim=1) - own) / 2  # [rows]
        return self.first_order(numbers, vectors, weights) + pairs

    def summands(self) -> Sequence[nn.Module]:
        return [self.first_order]
