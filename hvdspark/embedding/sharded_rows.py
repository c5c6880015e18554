"""The sharded rows of a collection: on its ranks, where they are trained, or in files, where they are only read."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives import Collective, current_collective
from hvdspark.embedding.config import DTYPES
from hvdspark.embedding.exchange.frozen import FrozenExchange
from hvdspark.embedding.exchange.trained import GroupExchange
from hvdspark.embedding.files.description import absent_state, check_description, describe_tables, matching_tables
from hvdspark.embedding.files.frozen import FrozenGroup
from hvdspark.embedding.files.host_copies import locate_files
from hvdspark.embedding.files.kept import KEEPS_NOTHING, KeptFiles
from hvdspark.embedding.files.shards import ShardFile, read_shards, shard_files, write_shards
from hvdspark.embedding.graphs import memory_that_lasts
from hvdspark.embedding.ids.distinct import unique
from hvdspark.embedding.plan.groups import TableGroups
from hvdspark.embedding.rows.protocol import RowStore
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.embedding.updates import UpdatedRows
from hvdspark.errors import ConfigurationError
from hvdspark.store import Store


class ShardedRows(UpdatedRows):
    """A module with rows of groups of tables, of which each rank holds those whose bucket it owns.

    Args:
        plan: the tables, their groups, and the features that read them.
        seed, collective, wire_dtype, name: see `ShardedEmbeddingCollection`.

    Attributes:
        tables: all of them, by name.
        features: feature -> name of its table.
        groups: the sharded tables, those of one exchange together.

    Raises:
        ConfigurationError: an unknown dtype.
    """

    def __init__(self, plan: TableGroups, seed: int, collective: Collective | None, wire_dtype: str, name: str) -> None:
        super().__init__(name)
        if wire_dtype not in DTYPES:
            raise ConfigurationError("unknown wire_dtype", value=wire_dtype, hint=f"known are {', '.join(DTYPES)}")
        self._plan = plan
        self.tables, self.features, self.groups = plan.tables, plan.features, plan.groups
        self.seed, self.wire_dtype = seed, wire_dtype
        self._collective = collective
        self._exchanges: list[GroupExchange] | None = None
        self._frozen: list[FrozenExchange] | None = None
        self._counting = True
        self._runs: tuple[int, ...] | None = None

    @property
    def shards(self) -> list[RowStore]:
        """This rank's rows of each of `groups`."""
        return [exchange.shard for exchange in self._bound()]

    def begin_epoch(self, epoch: int) -> None:
        """Say that a pass over the training rows begins; for tables with admission, on every rank. Not collective.

        Occurrences are counted in epoch 0 alone, since the same rows come again later: from epoch 1 on no id is
        admitted (nor is one again that eviction dropped), and those that wait are forgotten. A loop that sees every row
        once, such as one over a stream, need not call this.

        Args:
            epoch: its number from 0, also where training was resumed.
        """
        self._counting = epoch == 0
        for exchange in self._exchanges or []:
            exchange.shard.count_occurrences(self._counting)

    def description(self) -> dict[str, Any]:
        """What a manifest has to say about the sharded tables, beside the entries of their files; JSON-able."""
        return describe_tables(self.groups, self._plan.homes, self.seed, self._lineage.steps)

    def write_rows(self, store: Store, directory: str, *, state: bool) -> list[dict[str, Any]]:
        """Write this rank's sharded rows into a directory of the store; the entries of its files for a manifest.

        Args:
            state: also optimizer state and counts, to train on; else ids and rows alone, to score.

        Raises:
            StoreError: a file cannot be written.
        """
        return write_shards(store, directory, self.shards, state=state)

    def row_files(self, *, delta: int = 0, save: str = "") -> Iterator[ShardFile]:
        """The files of a checkpoint with this rank's sharded rows, to be written or copied one by one.

        Args:
            delta, save: see `shard_files`.
        """
        return shard_files(self.shards, state=True, delta=delta, save=save)

    def read_rows(
        self,
        store: Store,
        directory: str,
        description: dict[str, Any],
        entries: Sequence[Mapping[str, Any]],
        *,
        matching: bool = False,
        kept: KeptFiles = KEEPS_NOTHING,
    ) -> list[str]:
        """Replace this rank's sharded rows by those that it owns of what all ranks of any world wrote.

        Args:
            description, entries: from the manifest, of all ranks' files.
            matching: for a warm start after a change of the model: take over the tables that are as they were saved
                (name, dim, dtype, ids, init, placement, optimizer's name), and let all others begin anew. Features may
                always be others.
            kept: what this host has of the files.

        Returns: with `matching`, what was not taken over and why, in words.

        Raises:
            CheckpointError: a file is missing or damaged, or the rows are not of these tables.
        """
        tables: set[str] | None = None
        words: list[str] = []
        if matching:
            tables, words = matching_tables(description, self.description(), directory)
        else:
            check_description(description, self.description(), directory)
        self._drop_rows()
        steps, absent = description["steps"], absent_state(description)
        read_shards(store, directory, entries, self.shards, steps=steps, absent=absent, tables=tables, kept=kept)
        self._lineage.steps = steps
        return words

    def begin_from(
        self,
        store: Store,
        directory: str,
        description: dict[str, Any],
        entries: Sequence[Mapping[str, Any]],
        tables: Container[str],
    ) -> None:
        """Begin with this rank's rows of some tables of a trained model; optimizer state, and all other tables, begin
        anew. Ids that have a row need no admission, and their counts go on.

        Args:
            description, entries: from the model's manifest.
            tables: names from `rows_to_take`.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        self._drop_rows()
        steps = description["steps"]
        read_shards(store, directory, entries, self.shards, steps=steps, tables=tables, rows_alone=True)
        self._lineage.steps = steps

    def freeze(
        self,
        store: Store,
        directory: str,
        description: dict[str, Any],
        entries: Sequence[Mapping[str, Any]],
        fingerprint: str,
    ) -> None:
        """Look sharded rows up in files from now on, for scoring: mapped when a row is asked for, never changed.

        Args:
            description, entries: from the manifest, of all ranks' files.
            fingerprint: tells these files from all others; names this host's copies of them, which are made where the
                store is not a file system of this host.

        Raises:
            CheckpointError: the rows are not of these tables.
        """
        check_description(description, self.description(), directory)
        self._drop_rows()
        self._lineage.steps = description["steps"]
        locate = locate_files(store, directory, fingerprint)
        self._frozen = [
            FrozenExchange(FrozenGroup(group, homes, self.seed, entries, locate))
            for group, homes in zip(self.groups, self._plan.homes, strict=True)
        ]

    def rows_of(self, table: str, ids: Tensor) -> Tensor:
        """Rows of a sharded table of a fitted model, without a forward pass. Not collective.

        Args:
            table: its name.
            ids: int64 [n], valid, in any order and number.

        Returns: float32 [n, dim]; of ids never met as in a forward pass.

        Raises:
            CheckpointError: a file is missing or damaged.
            ConfigurationError: there is no such table, or the rows are not those of a fitted model.
        """
        for exchange, group in zip(self._frozen or (), self.groups, strict=False):
            names = [config.name for config in group]
            if table in names:
                distinct = unique(exchange.key_space.fuse(names.index(table), ids))
                return exchange.look_up(distinct, train=False).rows[distinct.inverse]
        raise ConfigurationError(
            "not a sharded table of a fitted model", value=table, where="ShardedEmbeddingCollection.rows_of"
        )

    def _drop_rows(self) -> None:
        """Their memory goes before others come, and what waits for them."""
        self.discard_gradients()
        self._exchanges = self._frozen = None

    def bind(self, collective: Collective) -> None:
        """Use these ranks. Raises ConfigurationError when rows live on others already."""
        here, there = self._collective, collective
        if self._exchanges and here is not None and (here.rank, here.size) != (there.rank, there.size):
            raise ConfigurationError("the tables already have their ranks", hint="bind before the first forward pass")
        self._collective = collective
        if not self._exchanges:
            self._runs = None  # other ranks divide anew
        for exchange in self._exchanges or []:
            exchange.collective = collective

    def divide(self, runs: Sequence[int]) -> None:
        """Which run of buckets each rank has from now on, the same on every rank. Rows that are here go: `read_rows`
        brings others.

        Args:
            runs: of each rank, from `runs_of_ranks`.
        """
        self._drop_rows()
        self._runs = None if list(runs) == list(range(len(runs))) else tuple(runs)

    def _ranks(self) -> Collective:
        if self._collective is None:
            self._collective = current_collective()
        return self._collective

    def _bound(self) -> list[GroupExchange]:
        """The exchange of each group; the first call makes the shards.

        Raises ConfigurationError where rows are looked up in files: what shards would say is not what they hold.
        """
        if self._frozen is not None:
            raise ConfigurationError(
                "tables of a fitted model are mapped files, which are only read",
                where="ShardedEmbeddingCollection",
                hint="score with them; read_rows() of a checkpoint gives rows that can be trained and written",
            )
        if self._exchanges is None:
            with memory_that_lasts():
                self._exchanges = list(self._exchanges_of(self._ranks()))
        return self._exchanges

    def _exchanges_of(self, ranks: Collective) -> Iterator[GroupExchange]:
        """An exchange for each group, with a shard that has no rows yet."""
        runs, owners = self._runs, None
        if runs is not None:
            owners = torch.tensor(runs).argsort()  # whose run each is
        for number, (group, homes) in enumerate(zip(self.groups, self._plan.homes, strict=True)):
            shard = TableShard(
                group,
                rank=ranks.rank,
                world_size=ranks.size,
                seed=self.seed,
                home_buckets=homes,
                run=None if runs is None else runs[ranks.rank],
            )
            shard.count_occurrences(self._counting)
            name, wire = f"{self.name}/{number}", DTYPES[self.wire_dtype]
            yield GroupExchange(name, shard, group[0].dim, ranks, wire, owners)

    def _lookups_by(self) -> Sequence[GroupExchange | FrozenExchange]:
        """What looks rows up, for each group."""
        return self._bound() if self._frozen is None else self._frozen

    def _device(self) -> torch.device:
        """Where ids are looked up."""
        return TableShard.device if self._frozen is None else FrozenGroup.device

    def _has_rows_apart(self) -> bool:
        return bool(self.groups)

    def _are_rows_mapped(self) -> bool:
        return self._frozen is not None

    def __getstate__(self) -> dict[str, Any]:
        """Configuration and Parameters. Shards that were never updated are left out: the seed makes them anew."""
        return {**super().__getstate__(), **dict.fromkeys(("_collective", "_exchanges", "_frozen", "_runs"))}
