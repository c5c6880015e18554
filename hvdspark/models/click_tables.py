"""Which tables a click model has, and which of its columns read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hvdspark.embedding.config import SparseOptimizer
from hvdspark.errors import ConfigurationError


@dataclass(frozen=True)
class TableSettings:
    """What a table has otherwise than the others of its model.

    Attributes:
        dim, min_count, at_limit: see `ClickModel`; None: as all others.
        optimizer: of its rows, with their vector; None: as all others.
        weight_optimizer: of the first-order weight in its rows; None: as all others.
    """

    dim: int | None = None
    min_count: int | None = None
    optimizer: SparseOptimizer | None = None
    weight_optimizer: SparseOptimizer | None = None
    at_limit: str | None = None


@dataclass(frozen=True)
class RowsOfColumn:
    """Where the rows of a category column are, and what is in them.

    Attributes:
        collection: number of the collection among those of the module.
        table: its name there.
        width: columns of the vector, which come first.
        has_weight: whether the first-order weight follows.
    """

    collection: int
    table: str
    width: int
    has_weight: bool


def tables_of(columns: Sequence[str], shared: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The table of each column, in the order of the columns.

    Raises:
        ConfigurationError: a shared column is unknown or in two tables, or a table has the name of a column that has
            another one.
    """
    found = {column: column for column in columns}
    for table, sharing in shared.items():
        if not sharing:
            raise ConfigurationError("no column uses this table", value=table, where="shared_tables")
        for column in sharing:
            if column not in found:
                hint = f"columns of categories are {', '.join(columns)}" if columns else "there are none"
                raise ConfigurationError(
                    "not a column of categories", value=column, where=f"shared_tables[{table!r}]", hint=hint
                )
        if table in found and table not in sharing:
            hint = "name the table otherwise, or let that column share it"
            raise ConfigurationError(
                "a column of this name has another table", value=table, where="shared_tables", hint=hint
            )
    names = [column for sharing in shared.values() for column in sharing]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        named = " and ".join(repr(table) for table, sharing in shared.items() if twice[0] in sharing)
        raise ConfigurationError(
            "a column can have one table", value=twice, where="shared_tables", hint=f"{twice[0]!r} is in {named}"
        )
    for table, sharing in shared.items():
        found.update(dict.fromkeys(sharing, table))
    return found
