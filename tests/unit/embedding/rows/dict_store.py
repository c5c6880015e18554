"""A `RowStore` that is a dict of rows: slow, and short enough to be seen to be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.ids.hashing import bucket_range, salt_of
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.kernels import optimizers
from hvdspark.embedding.kernels.rounding import stochastic_round
from hvdspark.embedding.rows.column import Column
from hvdspark.embedding.rows.initializer import initial_rows


@dataclass
class Row:
    values: Tensor  # [D], in the table's dtype
    state: dict[str, Tensor]
    count: int
    last_step: int


@dataclass
class Waiting:
    count: int
    age: int  # times that its table's waiting ids were gone through since it was met


class DictStore:
    """See `RowStore`. Slots are the places in a list of all keys that were ever asked for."""

    device = torch.device("cpu")

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
        self.key_space = KeySpace(tables, home_buckets)
        self.buckets = bucket_range(rank, world_size)
        self.seed, self.step, self.counting = seed, 0, True
        self.rows: dict[int, Row] = {}
        self.waiting: dict[int, Waiting] = {}
        self.asked: list[int] = []
        self.watched: dict[int, tuple[int, int, bytes]] = {}
        self.dropped: set[int] = set()

    @property
    def counts_occurrences(self) -> bool:
        return self.counting and any(table.admission.min_count > 1 for table in self.tables)

    def count_occurrences(self, counting: bool) -> None:
        self.counting = counting
        if not counting:
            self.waiting.clear()

    def slots(self, keys: Tensor, insert: bool, times: Tensor | None = None) -> Tensor:
        often = [1] * len(keys) if times is None else times.tolist()
        found = []
        for key, occurrences in zip(keys.tolist(), often, strict=True):
            table = self._table(key)
            if table.num_embeddings is not None and not self._is_mine(key):
                raise IndexError(f"a key of table {table.name!r} is not on this rank")
            if insert:
                self._meet(key, table, occurrences)
            known = key in self.rows or table.num_embeddings is not None
            found.append(self._slot(key) if known else -1)
        return torch.tensor(found, dtype=torch.int64)

    def _meet(self, key: int, table: TableConfig, occurrences: int) -> None:
        if key in self.rows:
            self.rows[key].count += 1
            return
        count = 1
        if table.admission.min_count > 1:
            if not self.counting:
                return
            count = occurrences + (self.waiting[key].count if key in self.waiting else 0)
            self.waiting[key] = Waiting(count, 0)
            if count < table.admission.min_count:
                return
            del self.waiting[key]
        values = self._initial(key)
        state = {name: some[0] for name, some in optimizers.initial_state(self.optimizer, values[None]).items()}
        self.rows[key] = Row(values.to(self.dtype), state, count, self.step)

    def gather(self, slots: Tensor, *, met: bool = False) -> Tensor:
        rows = [self._row(slot) for slot in slots.tolist()]
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    def _row(self, slot: int) -> Tensor:
        if slot < 0:
            return torch.zeros(self.dim)
        key = self.asked[slot]
        return self.rows[key].values.float() if key in self.rows else self._initial(key).to(self.dtype).float()

    def update(self, slots: Tensor, gradients: Tensor, step: int, learning_rate_factor: float = 1.0) -> None:
        known = slots >= 0
        self.step = step
        touched = [self.rows[self.asked[slot]] for slot in slots[known].tolist()]
        if not touched:
            return
        values = torch.stack([row.values.float() for row in touched])
        state = {name: torch.stack([row.state[name] for row in touched]) for name in touched[0].state}
        optimizers.update(self.optimizer.scaled(learning_rate_factor), values, state, gradients[known].clone())
        stored = values if self.dtype == torch.float32 else stochastic_round(values, self.dtype, step)
        for number, row in enumerate(touched):
            row.values, row.last_step = stored[number], step
            row.state = {name: some[number] for name, some in state.items()}

    def evict(self, step: int) -> int:
        for key, entry in list(self.waiting.items()):
            table = self._table(key)
            period = table.admission.forget_after_steps or (table.eviction.every_steps if table.eviction else 0)
            if period and step > 0 and step % period == 0:
                if entry.age:
                    del self.waiting[key]
                entry.age += 1
        rules = {table.name: table.eviction for table in self.tables if table.eviction is not None}
        due = {name: rule for name, rule in rules.items() if step > 0 and step % rule.every_steps == 0}
        if not due:
            return 0
        self.step, before = step, len(self.rows)
        for key, row in list(self.rows.items()):
            rule = due.get(self._table(key).name)
            if rule is None:
                continue
            old = rule.max_age_steps is not None and step - row.last_step >= rule.max_age_steps
            rare = rule.min_count is not None and row.count < rule.min_count
            if old or rare:
                del self.rows[key]
                self.dropped.add(key)
            elif rule.min_count is not None:
                row.count //= 2
        return before - len(self.rows)

    def parts(self, ranges: Sequence[tuple[int, int]], *, changed: bool = False) -> Iterator[DictPart]:
        for first, stop in ranges:
            yield DictPart(self, first, stop, changed)

    def watch(self) -> None:
        self.watched = {key: self._bits(key) for key in self.rows}
        self.dropped.clear()

    def rows_changed(self) -> int:
        return len(self.changed_keys())

    def changed_keys(self) -> list[int]:
        return [key for key in self.rows if self.watched.get(key) != self._bits(key)]

    def _bits(self, key: int) -> tuple[int, int, bytes]:
        row = self.rows[key]
        some = [row.values.float(), *row.state.values()]
        return row.count, row.last_step, b"".join(values.numpy().tobytes() for values in some)

    def load(self, table: int, tensors: Mapping[str, Tensor]) -> None:
        for number, key in enumerate(self.key_space.fuse(table, tensors["ids"]).tolist()):
            if self._is_mine(key):
                state = {
                    name.removeprefix("state."): tensor[number].clone()
                    for name, tensor in tensors.items()
                    if name.startswith("state.")
                }
                count, last_step = int(tensors["counts"][number]), int(tensors["last_step"][number])
                self.rows[key] = Row(tensors["rows"][number].clone(), state, count, last_step)
        for number, key in enumerate(self.key_space.fuse(table, tensors["waiting_ids"]).tolist()):
            if self.counting and self._is_mine(key):
                self.waiting[key] = Waiting(
                    int(tensors["waiting_counts"][number]), int(tensors["waiting_ages"][number])
                )

    def resume(self, step: int) -> None:
        self.step = step

    def row_counts(self) -> list[int]:
        names = [self._table(key).name for key in self.rows]
        return [names.count(table.name) for table in self.tables]

    def not_finite(self) -> str | None:
        bad = {self._table(key).name for key, row in self.rows.items() if not row.values.isfinite().all()}
        return next((table.name for table in self.tables if table.name in bad), None)

    def _table(self, key: int) -> TableConfig:
        return self.tables[key >> self.key_space.id_bits]

    def _is_mine(self, key: int) -> bool:
        return self.buckets[0] <= self.bucket_of(key) < self.buckets[1]

    def bucket_of(self, key: int) -> int:
        return int(self.key_space.buckets(torch.tensor([key])))

    def _slot(self, key: int) -> int:
        if key not in self.asked:
            self.asked.append(key)
        return self.asked.index(key)

    def _initial(self, key: int) -> Tensor:
        table = self._table(key)
        ids = torch.tensor([key & (self.key_space.id_limit - 1)])
        return initial_rows(ids, self.dim, self.seed, salt_of("table", table.name), table.init)[0]


@dataclass(frozen=True)
class DictPart:
    """See `Part`."""

    store: DictStore
    first: int
    stop: int
    changed: bool = False

    @property
    def ids(self) -> list[Int64Array]:
        return [np.array(self._ids_of(table, self._keys)) for table in range(len(self.store.tables))]

    @property
    def dropped(self) -> list[Int64Array]:
        keys = list(self.store.dropped)
        return [np.array(self._ids_of(table, keys)) for table in range(len(self.store.tables))] if self.changed else []

    @property
    def _keys(self) -> list[int]:
        return self.store.changed_keys() if self.changed else list(self.store.rows)

    @property
    def waiting(self) -> list[Int64Array]:
        return [np.array(self._ids_of(table, list(self.store.waiting))) for table in range(len(self.store.tables))]

    def _ids_of(self, table: int, keys: Sequence[int]) -> list[int]:
        space = self.store.key_space
        mine = [key for key in sorted(keys) if key >> space.id_bits == table]
        return [key & (space.id_limit - 1) for key in mine if self.first <= self.store.bucket_of(key) < self.stop]

    def columns(self, table: int, *, state: bool) -> list[Column]:
        ids, waiting = torch.tensor(self._ids_of(table, self._keys), dtype=torch.int64), None
        rows = [self.store.rows[key] for key in self.store.key_space.fuse(table, ids).tolist()]
        values = torch.stack([row.values for row in rows]) if rows else torch.zeros(0, self.store.dim)
        counts = torch.tensor([row.count for row in rows], dtype=torch.int32)
        found = {"ids": ids, "counts": counts, "rows": values.to(self.store.dtype)}
        if state:
            if self.changed:
                found["dropped_ids"] = torch.tensor(self._ids_of(table, list(self.store.dropped)), dtype=torch.int64)
            waiting = torch.tensor(self._ids_of(table, list(self.store.waiting)), dtype=torch.int64)
            entries = [self.store.waiting[key] for key in self.store.key_space.fuse(table, waiting).tolist()]
            shapes = self.store.optimizer.state_shapes(self.store.dim)
            found |= {
                "waiting_ids": waiting,
                "waiting_counts": torch.tensor([entry.count for entry in entries], dtype=torch.int32),
                "waiting_ages": torch.tensor([entry.age for entry in entries], dtype=torch.int32),
                "last_step": torch.tensor([row.last_step for row in rows], dtype=torch.int32),
            }
            for name, shape in shapes.items():
                some = [row.state[name] for row in rows]
                found[f"state.{name}"] = torch.stack(some) if some else torch.zeros(0, *shape)
        return [Column(name, some.dtype, tuple(some.shape), lambda some=some: [some]) for name, some in found.items()]
