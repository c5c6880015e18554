"""Deep & Cross network, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hvdspark.checks import whole
from hvdspark.models.architecture import Architecture
from hvdspark.models.mlp import hidden_layers, linear


class DCNv2(Architecture):
    """Cross layers x_{l+1} = x_0 * (W_l x_l + b_l) + x_l beside an MLP, and one linear layer of both.

    R. Wang and others: DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
    Systems, WWW 2021, arXiv:2008.13535; its "parallel" structure, with full matrices W_l.

    Args:
        hidden, dropout: units of the MLP's hidden layers, and the share of them that a training step leaves out.
        cross_layers: L; the logit has products of up to L + 1 features.
    """

    uses_weights: ClassVar[bool] = False
    puts_side_by_side: ClassVar[bool] = True

    def __init__(
        self,
        numbers: int,
        fields: int,
        dim: int | Sequence[int],
        hidden: Sequence[int],
        dropout: float = 0.0,
        cross_layers: int = 3,
    ) -> None:
        super().__init__(numbers, fields, dim)
        whole("cross_layers", cross_layers, "DCNv2", least=1)
        self.hidden, self.dropout, self.cross_layers = tuple(hidden), dropout, cross_layers
        width = self.vector_width + numbers
        self.cross = nn.ModuleList(linear(width, width) for _ in range(cross_layers))
        self.deep = hidden_layers(width, self.hidden, dropout)
        self.output = linear(width + [width, *self.hidden][-1], 1)

    def forward(self, numbers: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        start = torch.cat([vectors.flatten(1), numbers], dim=1)  # [rows, vector_width + N]
        crossed = start
        for layer in self.cross:
            crossed = torch.addcmul(crossed, start, layer(crossed))
        return self.output(torch.cat([crossed, self.deep(start)], dim=1)).squeeze(1)

    def summands(self) -> Sequence[nn.Module]:
        return [self.output]
