"""Embedding tables sharded over the ranks, as a module for any model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.exchange.expand import Source, stack, take
from hvdspark.embedding.exchange.prefetch import Prefetched
from hvdspark.embedding.graphs import outside_graphs, refuse_tracing
from hvdspark.embedding.ids.bad_id import BadId, BadIdError
from hvdspark.embedding.ids.distinct import Unique
from hvdspark.embedding.ids.jagged import Jagged, device_of, jagged_of, name_features
from hvdspark.embedding.phases import DISTINCT, in_phase
from hvdspark.embedding.plan.groups import TableGroups
from hvdspark.embedding.rows.replicated import ReplicatedTables
from hvdspark.embedding.sharded_rows import ShardedRows
from hvdspark.errors import ConfigurationError


class ShardedEmbeddingCollection(ShardedRows):
    """Embedding tables of any size; each rank holds the rows whose bucket it owns.

        embeddings = ShardedEmbeddingCollection(
            [TableConfig("users", 16), TableConfig("pages", 16, num_embeddings=1000, pooling="mean")],
            {"user": "users", "friend": "users", "history": "pages"},
        )
        vectors = embeddings({"user": user, "friend": friend, "history": (values, offsets)})  # each [rows, 16]

    A training step, the same on every rank:

        loss = f(embeddings(batch)).sum() / rows_of_the_global_batch
        loss.backward()
        optimizer.step()                  # the dense layers
        embeddings.apply_gradients()      # the sharded rows; or once, before training: embeddings.step_with(optimizer)

    With a GradScaler (float16), `step_scaled(model, optimizer, scaler)` does both, and `scaler.update()`.

    Sharded rows are no Parameter: no optimizer, no `broadcast_parameters` and no `state_dict` sees them. Their own
    optimizer is that of the `TableConfig`, and it gets the *sum* of the gradients of all ranks: divide the local loss
    by the weight of the global batch. Replicated tables are `nn.Embedding`s with ordinary Parameters, in float32,
    which the model's optimizer trains with the dense layers.

    Promises that the ranks must keep: all of them call forward in the same order and mode, also with a batch without
    rows, and `apply_gradients` after the same passes. Backward is not collective. Whether a pass trains is the same
    question as in torch: `self.training` and gradients enabled. Other passes change nothing: ids never met before give
    their initial row in a bounded table, zeros in an unbounded one.

    Args:
        tables: with unique names; each is used by some feature. `ShardingPlan.configs` are tables whose placement is
            decided by expected traffic; here "auto" looks at the size alone.
        features: feature -> name of its table. Several features may share one.
        seed: of the initial rows, which depend on (seed, table, id) alone.
        collective: the ranks; None: Horovod's if it is initialised at the first forward pass, else those of an MPI
            launcher, else this process alone.
        wire_dtype: of rows and gradients between ranks: "float32" | "bfloat16" | "float16". Gradients of means over
            large batches are below what float16 can hold: with it they travel as bfloat16.
        name: distinguishes two collections of one model.

    Raises:
        ConfigurationError: names that do not fit together, an unknown dtype.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        features: Mapping[str, str],
        *,
        seed: int = 0,
        collective: Collective | None = None,
        wire_dtype: str = "float32",
        name: str = "embedding",
    ) -> None:
        super().__init__(TableGroups(tables, features), seed, collective, wire_dtype, name)
        self.replicated = ReplicatedTables(self._plan.replicated, seed)
        self._prefetched: Prefetched | None = None

    @outside_graphs
    def forward(self, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Tensor]:
        """Collective. The vectors of every feature.

        Args:
            inputs: by feature, or in the order of `features`: integer tensors [rows] or [rows, k], or for tables with
                pooling values [n] and offsets [rows + 1] (a tuple or a `Ragged`).

        Returns:
            By feature: float32 [rows, D], or [rows, k, D] without pooling; on the device of the ids.

        Raises:
            DataError: an id is out of range on some rank; the same error on every rank, and no row has changed.
            SchemaError: a feature's tensor is not of integers or of the wrong shape.
            ConfigurationError: a feature is missing.
        """
        by_feature = name_features(inputs, list(self.features))
        taken = zip(self.features, take(self._sources(by_feature)), strict=True)
        return {feature: output.to(device_of(by_feature[feature])) for feature, output in taken}

    @outside_graphs
    def stacked(self, inputs: Mapping[str, Any] | Sequence[Any]) -> Tensor:
        """Collective. What `forward` gives, side by side: float32 [rows, features, D].

        For features with one vector in a row, of tables with one dim. Bit for bit
        `torch.stack(list(forward(inputs).values()), dim=1)`, faster where no feature is pooled.

        Raises: as `forward`.
        """
        by_feature = name_features(inputs, list(self.features))
        device = device_of(by_feature[next(iter(self.features))])
        return stack(self._sources(by_feature), device).to(device)

    @outside_graphs
    def prefetch(self, inputs: Mapping[str, Any] | Sequence[Any], *, stale_rows: bool = False) -> None:
        """Collective. Begin the lookup of the next pass while this one is worked on, say before its backward pass.

        Ids travel, which do not depend on the rows: the results are the same, bit for bit. The next pass has to be
        called with these very tensors, in this mode. Of a fitted model's tables nothing travels, and nothing happens.

        Args:
            inputs: as of `forward`.
            stale_rows: rows travel, too, and miss what updates until then change: one step of staleness, no longer
                exact. Not for tables with eviction.

        Raises: as `forward`.
        """
        by_feature = name_features(inputs, list(self.features))
        if self._frozen is not None:
            return
        keys, bad = self._keys(self._jagged(by_feature))
        if self._prefetched is not None:
            raise ConfigurationError("prefetched twice", hint="one forward pass after each prefetch()")
        evicting = any(table.eviction is not None or table.at_limit == "evict" for table in self.tables.values())
        if stale_rows and evicting:
            raise ConfigurationError("stale rows of a table with eviction", hint="prefetch ids alone, or drop eviction")
        with self._bad_ids_named():
            self._prefetched = Prefetched(
                by_feature, self._is_training(), self._bound(), keys, bad, stale_rows=stale_rows
            )

    def _sources(self, by_feature: Mapping[str, Any]) -> list[Source]:
        """Collective. What the features read in this forward pass."""
        refuse_tracing("ShardedEmbeddingCollection")
        jagged, train = self._jagged(by_feature), self._is_training()
        lookups = self._look_up(by_feature, jagged, train)
        if train and lookups:
            self._pending.remember(lookups)
        read: list[tuple[list[str], Tensor, Unique | None]] = [
            (features, lookup.rows, lookup.distinct)
            for features, lookup in zip(self._plan.readers, lookups, strict=True)
        ]
        read += [
            (self._plan.readers_of([table]), self.replicated.rows(table), None) for table in self.replicated.tables
        ]
        columns = {feature: number for number, feature in enumerate(self.features)}
        sources = []
        for features, rows, distinct in read:
            devices = {device_of(by_feature[name]) for name in features}
            if distinct is not None and len(devices) == 1:
                rows = rows.to(devices.pop())
            of_features = [jagged[name] for name in features], [columns[name] for name in features]
            apart = len({self.features[name] for name in features}) == len(features)
            sources.append(Source(rows, distinct, *of_features, apart))
        return sources

    def _drop_rows(self) -> None:
        super()._drop_rows()
        self._prefetched = None

    def _jagged(self, by_feature: Mapping[str, Any]) -> dict[str, Jagged]:
        device = self._device()
        return {
            feature: jagged_of(by_feature[feature], self.tables[table].pooling, feature, device)
            for feature, table in self.features.items()
        }

    def _is_training(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _look_up(self, by_feature: Mapping[str, Any], jagged: Mapping[str, Jagged], train: bool) -> list[Any]:
        """Collective. One lookup for each group; DataError on every rank if some rank has a bad id."""
        self._check_pass(train)
        prefetched, self._prefetched = self._prefetched, None
        with self._bad_ids_named():
            if prefetched is not None:
                return prefetched.take(by_feature, train)
            keys, bad = self._keys(jagged)
            # The first exchange tells everybody of a bad id, so there is no second one after it.
            pairs = zip(self._lookups_by(), keys, strict=True)
            return [exchange.look_up(some, train=train, bad=bad) for exchange, some in pairs]

    @in_phase(DISTINCT)
    def _keys(self, jagged: Mapping[str, Jagged]) -> tuple[list[Unique], BadId | None]:
        """What each group is asked for."""
        rank = 0 if self._frozen is not None else self._ranks().rank
        keys, bad = self._plan.keys(jagged, rank)
        if bad is not None and not keys:  # nobody else would hear of it
            raise self._plan.error(bad)
        return keys, bad

    @contextlib.contextmanager
    def _bad_ids_named(self) -> Iterator[None]:
        try:
            yield
        except BadIdError as error:
            raise self._plan.error(error.bad) from None

    def constructor_arguments(self) -> dict[str, Any]:
        """What makes a collection of the same tables, anywhere and with no rows yet."""
        return {
            "tables": list(self.tables.values()),
            "features": dict(self.features),
            "seed": self.seed,
            "wire_dtype": self.wire_dtype,
            "name": self.name,
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prefetched": None}
