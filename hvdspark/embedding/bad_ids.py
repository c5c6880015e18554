"""Ids that no table can have: found before anything is sent, told to all ranks, named for people."""

from __future__ import annotations

from collections.abc import Mapping

from hvdspark.embedding.cells import Cells
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.exchange import BadId
from hvdspark.errors import DataError


def first_bad_id(
    cells: Mapping[str, Cells], features: Mapping[str, str], limits: Mapping[str, int], rank: int
) -> BadId | None:
    """The first id of a batch that is not in [0, limit) of its table.

    Args:
        cells: by feature.
        features: feature -> table, in the order that all ranks have.
        limits: by table.
        rank: this one.
    """
    for number, (feature, table) in enumerate(features.items()):
        ids, limit = cells[feature].ids, limits[table]
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= limit):
            return BadId(number, int(ids[(ids < 0) | (ids >= limit)][0]), rank)
    return None


def bad_id_error(
    bad: BadId, features: Mapping[str, str], tables: Mapping[str, TableConfig], limits: Mapping[str, int]
) -> DataError:
    """What the user is told about it."""
    feature = list(features)[bad.feature]
    table = tables[features[feature]]
    return DataError(
        f"an id is not in [0, {limits[table.name]})",
        value=bad.id,
        where=f"feature {feature!r} of table {table.name!r}, rank {bad.rank}",
        hint="hash ids of an unbounded table into this range"
        if table.num_embeddings is None
        else "raise num_embeddings, or leave it out for an unbounded table",
    )
