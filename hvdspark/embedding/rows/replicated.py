"""Tables that every rank has whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.rows.initializer import initial_rows


class ReplicatedTables(nn.ModuleDict):
    """An `nn.Embedding` for each table, with the rows that a sharded table would begin with.

    Args:
        tables: bounded ones.
        seed: of the initial rows.

    Attributes:
        tables: their names.
    """

    def __init__(self, tables: Sequence[TableConfig], seed: int) -> None:
        super().__init__({_state_key(table.name): _replica(table, seed) for table in tables})
        self.tables = [table.name for table in tables]

    def rows(self, table: str) -> Tensor:
        """The Parameter of a table: float32 [num_embeddings, D]."""
        return self.get_parameter(f"{_state_key(table)}.weight")


def _replica(table: TableConfig, seed: int) -> nn.Embedding:
    rows = table.num_embeddings or 0
    weight = initial_rows(torch.arange(rows), table.dim, seed, salt_of("table", table.name), table.init)
    return nn.Embedding(rows, table.dim, _weight=weight)


def _state_key(table: str) -> str:
    """A name that nn.ModuleDict takes for any table's: no dots, and none of the names of its own attributes."""
    return "table " + table.replace("%", "%25").replace(".", "%2E")
