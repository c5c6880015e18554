"""A model that counts: each time that a row is trained, its own weight grows by what the learning rate says."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Visits(nn.Module):
    """A number for each row, zeros at first: id [n] -> [n]."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.zeros(rows, 1), freeze=False)

    def forward(self, id: Tensor) -> Tensor:
        return self.table(id).reshape(-1)


def one_for_each_row(output: Tensor, label: Tensor) -> Tensor:
    return output
