"""The rows of one group of tables that this rank owns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import bucket_range, salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.rows import contents, optimizers
from hvdspark.embedding.rows.admission import WaitingKeys
from hvdspark.embedding.rows.initializer import initial_rows
from hvdspark.embedding.rows.key_index import KeyIndex
from hvdspark.embedding.rows.rounding import stochastic_round
from hvdspark.embedding.rows.slab import Slab
from hvdspark.errors import ConfigurationError

_SPARE = 8  # slabs grow by 1/8
_BLOCK_ROWS = 1 << 16  # rows that are initialised or loaded at a time: bounds the work memory


class TableShard:
    """Rows, optimizer state and counts of the keys that one rank owns, for all tables of one group.

    A group is tables of one (dim, dtype, optimizer). They share one slab; a row of it is called a *slot*. Everything
    is asked for by the fused int64 *keys* of `keys.KeySpace` (`shard.key_space`), which the exchange also sends.

    Not thread-safe. Slots stay valid until `evict` or `load`; inserting never moves them.

    One training step is

        slots = shard.slots(keys, insert=True)       # once for each step: it counts the sighting of every key
        rows = shard.gather(slots)                   # float32 [n, D]
        shard.update(slots, gradients, step)         # gradients summed over the global batch
        shard.evict(step)

    The slots of bounded tables come first and are arithmetic on the key; those of unbounded tables follow in the order
    of admission and are found by a hash index. Memory of a bounded table's row is first touched when its id is met.

    Args:
        tables: configurations of the group's tables, in the same order on every rank.
        rank, world_size: decide which buckets are ours.
        seed: of the initial rows.
        home_buckets: from the plan, see `KeySpace`.

    Attributes:
        buckets: those that are ours: [first, stop).

    Raises:
        ConfigurationError: the tables do not agree in dim, dtype and optimizer.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        home_buckets: Sequence[int] | None = None,
    ) -> None:
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
        self._seed, self._step = seed, 0
        self.buckets = bucket_range(rank, world_size)
        ranges = [
            self.key_space.position_range(number, *self.buckets) if table.num_embeddings else (0, 0)
            for number, table in enumerate(tables)
        ]
        self._first_positions = np.array([first for first, _ in ranges], dtype=np.int64)
        # Slots of bounded table t: [_bases[t], _bases[t + 1]).
        self._bases = np.cumsum([0] + [stop - first for first, stop in ranges], dtype=np.int64)
        self._owned = np.diff(self._bases).astype(np.uint64)
        self._dense = int(self._bases[-1])
        self._index = KeyIndex()
        self._waiting, self._counting = WaitingKeys(), True
        self._least_counts = np.array([table.admission.min_count for table in tables], dtype=np.int64)
        self._rows = Slab(self._dense, (self.dim,), self.dtype)
        self._state = {
            name: Slab(self._dense, shape, torch.float32)
            for name, shape in self.optimizer.state_shapes(self.dim).items()
        }
        self._counts = Slab(self._dense, (), torch.int32)  # bounded: 0 = never met, its memory says nothing
        self._last_step = Slab(self._dense, (), torch.int32)

    @property
    def counts_occurrences(self) -> bool:
        """Whether training counts how often ids occur that wait for admission."""
        return self._counting and bool((self._least_counts > 1).any())

    def count_occurrences(self, counting: bool) -> None:
        """Count occurrences from now on; or do not any more: then ids that wait for admission are forgotten, and no id
        of a table with admission gets a new row."""
        self._counting = counting
        if not counting:
            self._waiting = WaitingKeys()

    def slots(self, keys: Tensor, insert: bool, times: Tensor | None = None) -> Tensor:
        """Slot of every key, -1 where it has none (unknown and not inserted, or not admitted yet).

        Args:
            keys: unique fused keys, int64 [n], valid and owned by this rank (checked for bounded tables only); any
                order, ascending is fastest.
            insert: training: give new keys of unbounded tables a slot (if admitted) with their initial row, and count
                the sighting of every key. False (evaluation, scoring) changes nothing at all.
            times: int64 [n], how often each key occurs in the global batch, for admission; None: once.

        Returns: int64 [n].
        """
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
        """Rows as float32 [n, D] (a copy); zeros where the slot is -1. Changes nothing.

        Args:
            met: the slots are those of keys that training has met, as with `slots(..., insert=True)`.
        """
        index = slots.numpy()
        unknown = index < 0
        if not unknown.any():
            rows = self._rows.take(index).float()
        elif len(self._rows):
            rows = self._rows.take(np.where(unknown, 0, index)).float()
            rows[torch.from_numpy(unknown)] = 0
        else:
            rows = torch.zeros((len(index), self.dim))
        if met:
            return rows
        # Bounded rows that evaluation asks for before they were seen in training.
        fresh = np.flatnonzero(~unknown & (index < self._dense))
        fresh = fresh[self._counts.memory.take(index[fresh]) == 0]
        if len(fresh):
            rows[torch.from_numpy(fresh)] = self._initial(self._dense_keys(index[fresh])).to(self.dtype).float()
        return rows

    def update(
        self,
        slots: Tensor,
        gradients: Tensor,
        step: int,
        learning_rate_factor: float = 1.0,
        rows: Tensor | None = None,
    ) -> None:
        """Apply the optimizer once to each slot.

        Args:
            slots: int64 [n] from `slots(..., insert=True)`, unique except for -1, whose gradients are dropped.
            gradients: float32 [n, D], already summed over duplicates and ranks.
            step: number of the training step, 0 <= step < 2**31; remembered for eviction and delta checkpoints.
            learning_rate_factor: of the optimizer's learning rate, from a schedule; > 0.
            rows: what `gather(slots)` gives, if it is known; is overwritten.
        """
        known = slots >= 0
        if not bool(known.all()):
            slots, gradients, rows = slots[known], gradients[known], None if rows is None else rows[known]
        self._step = step
        index = slots.numpy()
        if not len(index):
            return
        if rows is None:
            rows = self._rows.take(index).float()
        state = {name: slab.take(index) for name, slab in self._state.items()}
        optimizers.update(self.optimizer.scaled(learning_rate_factor), rows, state, gradients.detach())
        self._rows.put(index, rows if self.dtype == torch.float32 else stochastic_round(rows, self.dtype, step))
        for name, slab in self._state.items():
            slab.put(index, state[name])
        self._last_step.memory[index] = step

    def evict(self, step: int) -> int:
        """Drop the rows that the eviction rules of their tables give up now; all slots are invalid afterwards.

        To be called after the update of every step: does nothing unless step > 0 is a multiple of `every_steps` of some
        table. Ids of that table that wait for admission and were not met since the last such step go, too; those of a
        table with `forget_after_steps` at its multiples.

        Returns: rows dropped.
        """
        self._forget(step)
        due = [
            number
            for number, table in enumerate(self.tables)
            if table.eviction is not None and step > 0 and step % table.eviction.every_steps == 0
        ]
        if not due:
            return 0
        self._step = step
        kept = np.empty(len(self._index), dtype=bool)
        for start in range(0, len(kept), _BLOCK_ROWS):
            kept[start : start + _BLOCK_ROWS] = self._kept(due, step, start, min(start + _BLOCK_ROWS, len(kept)))
        dropped = len(kept) - int(np.count_nonzero(kept))
        if dropped:
            self._index.keep(kept)
            for slab in self._slabs():
                slab.move_up(self._dense, kept)
                slab.resize(self._dense + len(self._index))
        return dropped

    def _kept(self, due: Sequence[int], step: int, start: int, stop: int) -> BoolArray:
        """Which of the ids [start, stop) of unbounded tables stay; counts that were looked at are halved."""
        places = slice(self._dense + start, self._dense + stop)
        table_of = self.key_space.tables_of(self._index.keys[start:stop])
        counts, ages = self._counts.memory[places], step - self._last_step.memory[places]
        kept = np.ones(stop - start, dtype=bool)
        for number in due:
            rule = self.tables[number].eviction
            assert rule is not None
            mine = table_of == number
            if rule.max_age_steps is not None:
                kept &= ~(mine & (ages >= rule.max_age_steps))
            if rule.min_count is not None:
                kept &= ~(mine & (counts < rule.min_count))
                counts[mine] >>= 1
        return kept

    def _forget(self, step: int) -> None:
        """Ids that wait for admission and did not come again."""
        periods = [
            table.admission.forget_after_steps or (table.eviction.every_steps if table.eviction else 0)
            for table in self.tables
        ]
        due = [number for number, period in enumerate(periods) if period and step > 0 and step % period == 0]
        if due:
            keys = self._waiting.all_keys
            passed = np.empty(len(keys), dtype=bool)
            for start in range(0, len(keys), _BLOCK_ROWS):
                some = self.key_space.tables_of(keys[start : start + _BLOCK_ROWS])
                passed[start : start + _BLOCK_ROWS] = np.isin(some, due)
            self._waiting.forget(passed)

    def parts(self, ranges: Sequence[tuple[int, int]]) -> Iterator[contents.Part]:
        """The rows met in training, by ranges [first, stop) of buckets that do not overlap; see `contents.parts`."""
        return contents.parts(self, ranges)

    def export(self, table: int) -> dict[str, Tensor]:
        """Copies of the rows of one table that were met in training; a bounded table's others are its initial rows.

        Keys of the dict: "ids" int64 [n], ascending, "rows" [n, D] in the table's dtype, "counts" int32 [n] (steps that
        met the id), "last_step" int32 [n] (of the last update; before the first one, the latest step when the id was
        first met), "state.<name>" float32 [n, ...] for each of the optimizer's states, and for ids that wait for
        admission "waiting_ids" int64 [m], ascending, "waiting_counts" int32 [m] and "waiting_ages" int32 [m] (passes of
        `evict` since the last sighting).
        """
        (part,) = self.parts([self.buckets])
        return {column.name: torch.cat(list(column.blocks())) for column in part.columns(table, state=True)}

    def load(self, table: int, tensors: dict[str, Tensor]) -> None:
        """Take over what `export` gave, from any world size; ids that this rank does not own are left out.

        May be called many times, with different parts. Rows that are there already are overwritten.

        Raises:
            CheckpointError: a tensor is missing or has the wrong shape or dtype, or an id is not one of this table.
        """
        contents.load(self, table, tensors)

    def resume(self, step: int) -> None:
        """After `load`: go on as if the last update had been that of this step."""
        self._step = step

    def row_counts(self) -> list[int]:
        """Rows of each table met in training, on this rank."""
        hashed = np.bincount(self.key_space.tables_of(self._index.keys), minlength=len(self.tables))
        bases = self._bases
        dense = [np.count_nonzero(self._counts.memory[bases[t] : bases[t + 1]]) for t in range(len(self.tables))]
        return [int(number) for number in hashed + dense]

    def bytes_used(self) -> int:
        """Bytes of rows, state, counts, keys and index, as allocated; a bounded table's count whole from the start."""
        return sum(slab.nbytes for slab in self._slabs()) + self._index.nbytes + self._waiting.nbytes

    def _slabs(self) -> Iterator[Slab]:
        yield from (self._rows, self._counts, self._last_step, *self._state.values())

    def _dense_slots(self, keys: Int64Array, insert: bool) -> Int64Array:
        tables = self.key_space.tables_of(keys)
        local = self.key_space.positions(torch.from_numpy(keys)).numpy() - self._first_positions[tables]
        foreign = local.view(np.uint64) >= self._owned[tables]  # also where it is negative
        slots = local + self._bases[tables]
        if foreign.any():
            first = int(np.flatnonzero(foreign)[0])
            raise IndexError(
                f"id {int(self.key_space.ids_of(keys[first]))} of table "
                f"{self.tables[int(tables[first])].name!r} is not on this rank (buckets {self.buckets})"
            )
        if insert:
            counts = self._counts.memory.take(slots)
            fresh = counts == 0
            if fresh.any():
                self._begin(slots[fresh], keys[fresh])
            self._counts.memory[slots] = counts + 1
        return slots

    def _hashed_slots(self, keys: Int64Array, insert: bool, times: Int64Array | None) -> Int64Array:
        places = self._index.find(keys)
        if not insert:
            return np.where(places >= 0, places + self._dense, -1)
        known = places >= 0
        self._counts.memory[places[known] + self._dense] += 1
        new = np.flatnonzero(~known)
        if len(new):
            counts = np.ones(len(new), dtype=np.int64)
            least = self._least_counts[self.key_space.tables_of(keys[new])]
            rare = least > 1
            if rare.any():
                counts[rare] = 0
                if self._counting:
                    often = None if times is None else times[new[rare]]
                    counts[rare] = self._waiting.sight(keys[new[rare]], least[rare], often)
                new, counts = new[counts > 0], counts[counts > 0]
            slots = self._place(keys[new])
            self._begin(slots, keys[new])
            self._counts.memory[slots] = counts
            places[new] = slots - self._dense
        return np.where(places >= 0, places + self._dense, -1)

    def _place(self, keys: Int64Array) -> Int64Array:
        """Slots of keys of one kind, made where missing; nothing is written into them."""
        if not len(keys):
            return np.empty(0, dtype=np.int64)
        if self.key_space.bounded[int(self.key_space.tables_of(keys[0]))]:
            return self._dense_slots(keys, insert=False)
        places = self._index.find(keys)
        new = places < 0
        places[new] = self._index.insert(keys[new])
        needed = self._dense + len(self._index)
        if needed > len(self._rows):
            for slab in self._slabs():
                slab.resize(needed + len(self._index) // _SPARE)
        return places + self._dense

    def _begin(self, slots: Int64Array, keys: Int64Array) -> None:
        """Write initial rows and state."""
        for start in range(0, len(slots), _BLOCK_ROWS):
            some = slots[start : start + _BLOCK_ROWS]
            rows = self._initial(keys[start : start + _BLOCK_ROWS])
            self._rows.put(some, rows.to(self.dtype))
            for name, values in optimizers.initial_state(self.optimizer, rows).items():
                self._state[name].put(some, values)
            self._last_step.memory[some] = self._step

    def _initial(self, keys: Int64Array) -> Tensor:
        tables = self.key_space.tables_of(keys)
        ids = torch.from_numpy(self.key_space.ids_of(keys))
        rows = torch.empty((len(keys), self.dim))
        for number in np.unique(tables):
            table = self.tables[number]
            chosen = torch.from_numpy(tables == number)
            rows[chosen] = initial_rows(ids[chosen], self.dim, self._seed, salt_of("table", table.name), table.init)
        return rows

    def _dense_keys(self, slots: Int64Array) -> Int64Array:
        tables = np.searchsorted(self._bases, slots, side="right") - 1
        positions = slots - self._bases[tables] + self._first_positions[tables]
        return self.key_space.keys_at(torch.from_numpy(tables), torch.from_numpy(positions)).numpy()
