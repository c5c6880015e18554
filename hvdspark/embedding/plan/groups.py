"""Which tables share an exchange, which features read them, and the keys of a batch. Pure: knows no rank and no row."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import cached_property

import torch

from hvdspark.embedding.config import TableConfig, check_unique_names
from hvdspark.embedding.ids.bad_id import BadId
from hvdspark.embedding.ids.distinct import Unique, unique, unique_of_tables
from hvdspark.embedding.ids.jagged import Jagged
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.kernels.distinct import are_below
from hvdspark.embedding.plan.placement import group_tables, home_buckets, is_replicated
from hvdspark.errors import ConfigurationError, DataError


class TableGroups:
    """The tables of a collection and their features.

    Args:
        tables: with unique names; each is used by some feature.
        features: feature -> name of its table.

    Attributes:
        replicated: tables that every rank has whole.
        groups: the others, those of one exchange together.
        homes: for each group the home buckets of its tables, see `KeySpace`.
        readers: for each group the features that look something up there.

    Raises:
        ConfigurationError: names that do not fit together.
    """

    def __init__(self, tables: Sequence[TableConfig], features: Mapping[str, str]) -> None:
        check_unique_names(tables)
        self.tables = {table.name: table for table in tables}
        self.features = dict(features)
        for feature, name in features.items():
            if name not in self.tables:
                known = f"tables are {', '.join(self.tables)}"
                raise ConfigurationError("unknown table", value=name, where=f"feature {feature!r}", hint=known)
        for name in self.tables:
            if name not in features.values():
                raise ConfigurationError("no feature uses this table", value=name, where="features")
        self.replicated = [table for table in tables if is_replicated(table)]
        self.groups = group_tables([table for table in tables if not is_replicated(table)])
        homes = dict(zip(self.tables, home_buckets(tables), strict=True))
        self.homes = [[homes[table.name] for table in group] for group in self.groups]
        self.readers = [self.readers_of([table.name for table in group]) for group in self.groups]

    def readers_of(self, tables: Container[str]) -> list[str]:
        """The features that look something up in some tables."""
        return [feature for feature, table in self.features.items() if table in tables]

    def keys(self, cells: Mapping[str, Jagged], rank: int) -> tuple[list[Unique], BadId | None]:
        """What each group is asked for in a batch; nothing where there is a bad id.

        Args:
            cells: by feature.
            rank: this one, to be named with a bad id.
        """
        found = [
            unique_of_tables([cells[name].ids for name in readers], tags, [self._limits[name] for name in readers])
            for readers, tags in zip(self.readers, self._tags, strict=True)
        ]
        sharded = [keys for keys in found if keys is not None]
        bad = self._bad_id(cells, list(self.features) if len(sharded) < len(found) else self._of_replicated, rank)
        if bad is None:
            return sharded, None
        return [unique(torch.zeros(0, dtype=torch.int64)) for _ in self.groups], bad

    def _bad_id(self, cells: Mapping[str, Jagged], features: Sequence[str], rank: int) -> BadId | None:
        ids = {feature: cells[feature].ids.numpy() for feature in features}
        if are_below(list(ids.values()), [self._limits[feature] for feature in features]):
            return None
        for feature, some in ids.items():
            bad = some[(some < 0) | (some >= self._limits[feature])]
            if len(bad):
                return BadId(list(self.features).index(feature), int(bad[0]), rank)
        return None

    def error(self, bad: BadId) -> DataError:
        """What the user is told about a bad id."""
        feature = list(self.features)[bad.feature]
        table = self.tables[self.features[feature]]
        return DataError(
            f"an id is not in [0, {self._limits[feature]})",
            value="it is negative" if bad.id < 0 else "it is larger",  # of rows errors tell no values
            where=f"feature {feature!r} of table {table.name!r}, rank {bad.rank}",
            hint="hash ids of an unbounded table into this range"
            if table.num_embeddings is None
            else "raise num_embeddings, or leave it out for an unbounded table",
        )

    # Made when they are first asked for: modules that earlier versions pickled have none of these.

    @cached_property
    def _spaces(self) -> list[KeySpace]:
        """The keys of each group."""
        return [KeySpace(group, homes) for group, homes in zip(self.groups, self.homes, strict=True)]

    @cached_property
    def _tags(self) -> list[list[int]]:
        """For each group what the keys of its readers have beside their ids."""
        return [
            [space.tag(names.index(self.features[feature])) for feature in readers]
            for space, names, readers in zip(self._spaces, self._names, self.readers, strict=True)
        ]

    @cached_property
    def _limits(self) -> dict[str, int]:
        """Ids of each feature are in [0, limit)."""
        of_tables = {name: table.num_embeddings or 0 for name, table in self.tables.items()}
        for space, names in zip(self._spaces, self._names, strict=True):
            of_tables |= {name: space.limit(place) for place, name in enumerate(names)}
        return {feature: of_tables[table] for feature, table in self.features.items()}

    @cached_property
    def _of_replicated(self) -> list[str]:
        return self.readers_of([table.name for table in self.replicated])

    @property
    def _names(self) -> list[list[str]]:
        return [[table.name for table in group] for group in self.groups]
