"""Modules of the fixtures in tests/fixtures/models-0.1.0. Their import paths are in those files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig

if TYPE_CHECKING:
    from hvdspark.data import Ragged


class Shop(nn.Module):
    """Two sharded tables (one of them unbounded, of arrays) and a replicated one below a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        tables = [
            TableConfig("item", 3, num_embeddings=10_000),
            TableConfig("words", 3, pooling="sum"),
            TableConfig("country", 3, num_embeddings=20),
        ]
        self.tables = ShardedEmbeddingCollection(
            tables, {"i": "item", "w": "words", "c": "country"}, seed=4, name="shop"
        )
        self.head = nn.Linear(10, 1)

    def forward(self, price: Tensor, item: Tensor, words: Ragged, country: Tensor) -> Tensor:
        rows = self.tables.stacked({"i": item, "w": words, "c": country})  # [rows, 3, 3]
        return self.head(torch.cat([price.unsqueeze(1), rows.flatten(1)], dim=1)).squeeze(1)


class Checkpointed(nn.Module):
    """A sharded and a replicated table below a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        tables = [TableConfig("many", 2), TableConfig("few", 2, num_embeddings=3)]
        self.tables = ShardedEmbeddingCollection(tables, {"many": "many", "few": "few"}, seed=1, name="t")
        self.head = nn.Linear(4, 1)

    def forward(self, many: Tensor, few: Tensor) -> Tensor:
        return self.head(self.tables.stacked({"many": many, "few": few}).flatten(1))
