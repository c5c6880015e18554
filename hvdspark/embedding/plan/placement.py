"""What table configurations alone say about where rows are: the same for any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import BUCKETS

# A table up to this size costs less in the dense allreduce and optimizer than in the exchange: 256 KiB at 16 columns.
# Of 26 tables with the cardinalities of Criteo, 4 have 4096 to 32768 rows; replicated, they double the dense exchange.
MAX_REPLICATED_ROWS = 1 << 12


def is_replicated(table: TableConfig) -> bool:
    """Whether every rank holds the whole table."""
    if table.placement != "auto":
        return table.placement == "replicated"
    return table.num_embeddings is not None and table.num_embeddings <= MAX_REPLICATED_ROWS


def group_tables(tables: Sequence[TableConfig]) -> list[list[TableConfig]]:
    """Tables of one (dim, dtype, optimizer), which share a slab and an exchange; groups and tables in order."""
    groups: dict[object, list[TableConfig]] = {}
    for table in tables:
        groups.setdefault((table.dim, table.dtype, table.optimizer), []).append(table)
    return list(groups.values())


def home_buckets(tables: Sequence[TableConfig]) -> list[int]:
    """For each of all tables of a model the bucket that its rows live in (placement "table"), or -1 (spread over all).

    Whole tables are laid end to end over the buckets, each at home in the middle of its part: n of them on n ranks are
    one on each rank.
    """
    whole = [table.placement == "table" for table in tables]
    return [
        BUCKETS * (2 * sum(whole[:number]) + 1) // (2 * sum(whole)) if at_home else -1
        for number, at_home in enumerate(whole)
    ]
