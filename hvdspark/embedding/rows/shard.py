"""The rows of one group of tables that this rank owns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import bucket_range
from hvdspark.embedding.kernels.placement import meet
from hvdspark.embedding.kernels.updates import update
from hvdspark.embedding.rows import contents, eviction, room
from hvdspark.embedding.rows.admission import WaitingKeys
from hvdspark.embedding.rows.budget import RowBudget, budget_of_process
from hvdspark.embedding.rows.changes import Changes
from hvdspark.embedding.rows.memory import RowMemory


class TableShard:
    """A `RowStore` in the memory of this host.

    Args:
        tables: configurations of the group's tables, in the same order on every rank.
        rank, world_size: of the rank; decide which buckets are ours.
        run: number of our run of buckets, where it is not that of the rank.
        seed: of the initial rows.
        home_buckets: from the plan, see `KeySpace`.
        budget: what all tables of this process may take; else what the process's environment says.

    Raises:
        ConfigurationError: the tables do not agree in dim, dtype and optimizer.
        MemoryBudgetError: the bounded ones alone take more than that.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        home_buckets: Sequence[int] | None = None,
        budget: RowBudget | None = None,
        run: int | None = None,
    ) -> None:
        buckets = bucket_range(rank if run is None else run, world_size)
        self.memory = RowMemory(tables, rank, buckets, seed, home_buckets, budget or budget_of_process())
        room.begin(self.memory)
        self.tables, self.key_space, self.buckets = self.memory.tables, self.memory.key_space, self.memory.buckets
        self.dim, self.dtype, self.optimizer = self.memory.dim, self.memory.dtype, self.memory.optimizer
        self._counting = True
        self._least_counts = np.array([table.admission.min_count for table in tables], dtype=np.int64)

    @property
    def counts_occurrences(self) -> bool:
        return self._counting and bool((self._least_counts > 1).any())

    def count_occurrences(self, counting: bool) -> None:
        self._counting = counting
        if not counting:
            self.memory.waiting = WaitingKeys()

    def slots(self, keys: Tensor, insert: bool, times: Tensor | None = None) -> Tensor:
        """See `RowStore`. A key of another rank is an IndexError in a bounded table; ascending keys are fastest."""
        fused, occurrences = keys.detach().numpy(), None if times is None else times.numpy()
        bounded = self.key_space.bounded
        if bounded.all():
            return torch.from_numpy(self._dense_slots(fused, insert))
        if not bounded.any():
            return torch.from_numpy(self._hashed_slots(fused, insert, occurrences))
        dense = bounded[self.key_space.tables_of(fused)]
        found = np.empty(len(fused), dtype=np.int64)
        found[dense] = self._dense_slots(fused[dense], insert)
        occurrences = None if occurrences is None else occurrences[~dense]
        found[~dense] = self._hashed_slots(fused[~dense], insert, occurrences)
        return torch.from_numpy(found)

    def gather(self, slots: Tensor, *, met: bool = False) -> Tensor:
        index = slots.numpy()
        unknown = index < 0
        if not unknown.any():
            rows = self.memory.rows.take(index).float()
        elif len(self.memory.rows):
            rows = self.memory.rows.take(np.where(unknown, 0, index)).float()
            rows[torch.from_numpy(unknown)] = 0
        else:
            rows = torch.zeros((len(index), self.dim))
        if met:
            return rows
        # Bounded rows that evaluation asks for before they were seen in training.
        fresh = np.flatnonzero(~unknown & (index < self.memory.dense))
        fresh = fresh[self.memory.counts.memory.take(index[fresh]) == 0]
        if len(fresh):
            initial = self.memory.initial(self.memory.dense_keys(index[fresh]))
            rows[torch.from_numpy(fresh)] = initial.to(self.dtype).float()
        return rows

    def update(self, slots: Tensor, gradients: Tensor, step: int, learning_rate_factor: float = 1.0) -> None:
        known = slots >= 0
        if not bool(known.all()):
            slots, gradients = slots[known], gradients[known]
        self.memory.step = step
        if len(slots):
            optimizer = self.optimizer.scaled(learning_rate_factor)
            update(optimizer, self.memory.touched(), slots.numpy(), gradients.detach(), step)

    def evict(self, step: int) -> int:
        return eviction.evict(self.memory, step)

    def parts(self, ranges: Sequence[tuple[int, int]], *, changed: bool = False) -> Iterator[contents.HostPart]:
        if changed and self.memory.changes is None:
            raise ValueError("nobody has watched for changes")
        return contents.parts(self.memory, ranges, self.memory.changes if changed else None)

    def watch(self) -> None:
        self.memory.changes = None  # its memory goes before the next comes
        self.memory.changes = Changes(self.memory.counts.memory, self.memory.step)

    def rows_changed(self) -> int:
        return contents.rows_changed(self.memory)

    def export(self, table: int) -> dict[str, Tensor]:
        """Copies of all tensors of one table, as `Part.columns` names them."""
        (part,) = self.parts([self.buckets])
        return {column.name: torch.cat(list(column.blocks())) for column in part.columns(table, state=True)}

    def load(self, table: int, tensors: Mapping[str, Tensor]) -> None:
        contents.load(self.memory, table, tensors, waiting=self._counting)

    def resume(self, step: int) -> None:
        self.memory.step = step

    def row_counts(self) -> list[int]:
        return self.memory.row_counts()

    def not_finite(self) -> str | None:
        return contents.not_finite(self.memory)

    def bytes_used(self) -> int:
        """Bytes of rows, state, counts, keys and index, as allocated; a bounded table's count whole from the start."""
        return self.memory.nbytes

    def _dense_slots(self, keys: Int64Array, insert: bool) -> Int64Array:
        slots = self.memory.dense_slots(keys)
        if insert:
            fresh = meet(self.memory.counts.memory, slots)
            if fresh.any():
                self.memory.begin(slots[fresh], keys[fresh])
        return slots

    def _hashed_slots(self, keys: Int64Array, insert: bool, times: Int64Array | None) -> Int64Array:
        if not insert:
            return self._slots_of(self.memory.index.find(keys))
        places = self.memory.index.find(keys, self.memory.counts.memory[self.memory.dense :])
        new = np.flatnonzero(places < 0)
        if len(new):
            counts = np.ones(len(new), dtype=np.int64)
            least = self._least_counts[self.key_space.tables_of(keys[new])]
            rare = least > 1
            if rare.any():
                counts[rare] = self._sighted(keys[new[rare]], least[rare], None if times is None else times[new[rare]])
                new, counts = new[counts > 0], counts[counts > 0]
            chosen = room.for_rows(self.memory, keys[new])
            if not chosen.all():
                new, counts = new[chosen], counts[chosen]
            slots = self.memory.place(keys[new])
            room.account(self.memory)
            self.memory.begin(slots, keys[new])
            self.memory.counts.memory[slots] = counts
            places[new] = slots - self.memory.dense
        return self._slots_of(places)

    def _sighted(self, keys: Int64Array, least: Int64Array, times: Int64Array | None) -> Int64Array:
        """The counts of rare keys that are admitted now, 0 for all others."""
        counts = np.zeros(len(keys), dtype=np.int64)
        if self._counting:
            chosen = room.for_waiting(self.memory, keys)
            often = None if times is None else times[chosen]
            counts[chosen] = self.memory.waiting.sight(keys[chosen], least[chosen], often)
        return counts

    def _slots_of(self, places: Int64Array) -> Int64Array:
        """Slots of places in the index, -1 for -1."""
        if not self.memory.dense:
            return places
        return np.where(places >= 0, places + self.memory.dense, -1)
