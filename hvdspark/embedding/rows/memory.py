"""Where the rows of a shard lie in the memory of this host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.kernels import optimizers, updates
from hvdspark.embedding.rows.admission import WaitingKeys
from hvdspark.embedding.rows.budget import RowBudget
from hvdspark.embedding.rows.changes import Changes
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.embedding.rows.key_index import KeyIndex
from hvdspark.embedding.rows.slab import Slab
from hvdspark.errors import ConfigurationError

BLOCK_ROWS = 1 << 16  # rows that are looked at, initialised or loaded at a time: bounds the work memory

SPARE = 8  # slabs grow by 1/8


class RowMemory:
    """Slabs of rows, state and counts, and which key has which *slot* of them.

    The slots of bounded tables come first and are arithmetic on the key; those of unbounded tables follow in the order
    of admission and are found by a hash index. Memory of a bounded table's row is first touched when its id is met.

    Args:
        tables: of one group.
        rank: for errors.
        buckets: those that are ours: [first, stop).
        seed: of the initial rows.
        home_buckets: from the plan, see `KeySpace`.
        budget: what all tables of this process may take.

    Attributes:
        dense: slots of bounded tables, [0, dense).
        bases: int64 [tables + 1]; slots of bounded table t are [bases[t], bases[t + 1]).
        first_positions: int64 [tables], position in its table's permutation of each table's first slot.
        index: places of the keys of unbounded tables; the slot of one is dense + its place.
        waiting: keys that wait for admission.
        rows: [slots, D] in the tables' dtype.
        state: by name, float32 [slots, ...].
        counts: int32 [slots], steps that met the id. Of a bounded table 0: never met, and its memory says nothing.
        last_step: int32 [slots], of the last update.
        step: the latest update.
        changes: since the last checkpoint; None where nobody asks.

    Raises:
        ConfigurationError: the tables do not agree in dim, dtype and optimizer.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        rank: int,
        buckets: tuple[int, int],
        seed: int,
        home_buckets: Sequence[int] | None,
        budget: RowBudget,
    ) -> None:
        self.rank, self.budget = rank, budget
        self.tables = tuple(tables)
        self.dim, self.dtype, self.optimizer = tables[0].dim, tables[0].torch_dtype, tables[0].optimizer
        for table in tables:
            if (table.dim, table.torch_dtype, table.optimizer) != (self.dim, self.dtype, self.optimizer):
                raise ConfigurationError(
                    "tables of one group differ",
                    value=table.name,
                    where="TableShard",
                    hint=f"dim, dtype and optimizer must be those of {tables[0].name!r}",
                )
        self.key_space = KeySpace(tables, home_buckets)
        self.step, self._seed = 0, seed
        self.buckets = buckets
        ranges = [
            self.key_space.position_range(number, *self.buckets) if table.num_embeddings else (0, 0)
            for number, table in enumerate(tables)
        ]
        self.first_positions = np.array([first for first, _ in ranges], dtype=np.int64)
        self.bases = np.cumsum([0] + [stop - first for first, stop in ranges], dtype=np.int64)
        self._owned = np.diff(self.bases).astype(np.uint64)
        self.dense = int(self.bases[-1])
        self.index = KeyIndex()
        self.waiting = WaitingKeys()
        self.rows = Slab(self.dense, (self.dim,), self.dtype)
        self.state = {
            name: Slab(self.dense, shape, torch.float32)
            for name, shape in self.optimizer.state_shapes(self.dim).items()
        }
        self.counts = Slab(self.dense, (), torch.int32)
        self.last_step = Slab(self.dense, (), torch.int32)
        self.changes: Changes | None = None

    @property
    def used(self) -> int:
        """Slots are [0, used)."""
        return self.dense + len(self.index)

    @property
    def nbytes(self) -> int:
        """Bytes of rows, state, counts, keys and index, as allocated; a bounded table's count whole from the start."""
        return sum(slab.nbytes for slab in self._slabs()) + self.index.nbytes + self.waiting.nbytes

    def dense_slots(self, keys: Int64Array) -> Int64Array:
        """Slots of keys of bounded tables. int64 [n] -> int64 [n]. IndexError for a key of another rank."""
        tables = self.key_space.tables_of(keys)
        local = self.key_space.positions(torch.from_numpy(keys)).numpy() - self.first_positions[tables]
        foreign = local.view(np.uint64) >= self._owned[tables]  # also where it is negative
        if foreign.any():
            first = int(np.flatnonzero(foreign)[0])
            raise IndexError(
                f"id {int(self.key_space.ids_of(keys[first]))} of table "
                f"{self.tables[int(tables[first])].name!r} is not on this rank (buckets {self.buckets})"
            )
        return local + self.bases[tables]

    def dense_keys(self, slots: Int64Array) -> Int64Array:
        """Keys of slots of bounded tables: the inverse of `dense_slots`. int64 [n] -> int64 [n]."""
        tables = np.searchsorted(self.bases, slots, side="right") - 1
        positions = slots - self.bases[tables] + self.first_positions[tables]
        return self.key_space.keys_at(torch.from_numpy(tables), torch.from_numpy(positions)).numpy()

    def table_of(self, slot: int) -> TableConfig:
        """Whose row is in a slot."""
        if slot < self.dense:
            return self.tables[int(np.searchsorted(self.bases, slot, side="right")) - 1]
        return self.tables[int(self.key_space.tables_of(self.index.keys[slot - self.dense : slot - self.dense + 1])[0])]

    def place(self, keys: Int64Array) -> Int64Array:
        """Slots of keys of one kind, made where missing; nothing is written into them. int64 [n] -> int64 [n]."""
        if not len(keys):
            return np.empty(0, dtype=np.int64)
        if self.key_space.bounded[self.key_space.tables_of(keys[:1])[0]]:
            return self.dense_slots(keys)
        places = self.index.find(keys)
        new = places < 0
        places[new] = self.index.insert(keys[new])
        if self.used > len(self.rows):
            for slab in self._slabs():
                slab.resize(self.used + len(self.index) // SPARE)
        return places + self.dense

    def touched(self) -> updates.Memory:
        """What an update changes; until slabs grow."""
        state = {name: slab.memory for name, slab in self.state.items()}
        return updates.Memory(self.rows.memory, self.dtype, state, self.last_step.memory)

    def begin(self, slots: Int64Array, keys: Int64Array) -> None:
        """Write initial rows and state."""
        for start in range(0, len(slots), BLOCK_ROWS):
            some = slots[start : start + BLOCK_ROWS]
            rows = self.initial(keys[start : start + BLOCK_ROWS])
            self.rows.put(some, rows.to(self.dtype))
            for name, values in optimizers.initial_state(self.optimizer, rows).items():
                self.state[name].put(some, values)
            self.last_step.memory[some] = self.step

    def initial(self, keys: Int64Array) -> Tensor:
        """Initial rows of any keys. int64 [n] -> float32 [n, D]."""
        tables = self.key_space.tables_of(keys)
        ids = torch.from_numpy(self.key_space.ids_of(keys))
        if len(self.tables) == 1:
            return self._initial_of(0, ids)
        rows = torch.empty((len(keys), self.dim))
        for number in np.unique(tables):
            chosen = torch.from_numpy(tables == number)
            rows[chosen] = self._initial_of(int(number), ids[chosen])
        return rows

    def _initial_of(self, number: int, ids: Tensor) -> Tensor:
        table = self.tables[number]
        return initial_rows(ids, self.dim, self._seed, salt_of("table", table.name), table.init)

    def keep(self, kept: BoolArray) -> None:
        """Drop the keys of unbounded tables whose entry of `kept` (bool [len(index)]) is False; others move up."""
        if self.changes is not None:
            self.changes.drop(self.index.keys[~kept])
        self.index.keep(kept)
        for slab in self._slabs():
            slab.move_up(self.dense, kept)
            slab.resize(self.used)

    def row_counts(self) -> list[int]:
        """Rows of each table met in training."""
        hashed = np.bincount(self.key_space.tables_of(self.index.keys), minlength=len(self.tables))
        bases = self.bases
        dense = [np.count_nonzero(self.counts.memory[bases[t] : bases[t + 1]]) for t in range(len(self.tables))]
        return [int(number) for number in hashed + dense]

    def _slabs(self) -> Iterator[Slab]:
        yield from (self.rows, self.counts, self.last_step, *self.state.values())
        if self.changes is not None:
            yield self.changes.counts
