"""Logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hvdspark.models.architecture import Architecture


class LogisticRegression(Architecture):
    """logit = b + sum_n w_n x_n + sum_f weights_f; the baseline, and the first-order part of other architectures.

    H. B. McMahan and others: Ad Click Prediction: a View from the Trenches, KDD 2013.
    """

    uses_vectors: ClassVar[bool] = False

    def __init__(self, numbers: int, fields: int) -> None:
        super().__init__(numbers, fields)
        # None, not empty: a parameter without elements is an allreduce without data.
        self.weight = nn.Parameter(torch.zeros(numbers)) if numbers else None
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        logits = weights.sum(dim=1) + self.bias  # [rows]
        if self.weight is not None:
            # A product and a sum, not a matrix product: autocast leaves these in float32.
            logits = logits + (numbers * self.weight).sum(dim=1)
        return logits

    def summands(self) -> Sequence[nn.Module]:
        return [self]
