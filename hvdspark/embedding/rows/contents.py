"""The rows of a shard, taken out by ranges of buckets and put back: what checkpoints and exports are made of.

`TableShard` hands its own methods on to here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array, all_finite
from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.embedding.rows import room
from hvdspark.embedding.rows.changes import Changes
from hvdspark.embedding.rows.column import Column
from hvdspark.embedding.rows.memory import BLOCK_ROWS, RowMemory
from hvdspark.embedding.rows.slab import Slab
from hvdspark.errors import CheckpointError

_SCANNED_KEYS = 1 << 17


@dataclass(frozen=True)
class HostPart:
    """The rows that a shard has in some buckets: a `protocol.Part`. Valid until the shard changes.

    Attributes:
        first, stop: buckets [first, stop).
        ids: see `Part`.
        slots: where their rows are.
        waiting: for each table, places of the ids that wait for admission, by ascending id.
        dropped: see `Part`.
    """

    memory: RowMemory
    first: int
    stop: int
    ids: tuple[Int64Array, ...]
    slots: tuple[Int64Array, ...]
    waiting: tuple[Int64Array, ...]
    dropped: tuple[Int64Array, ...] = ()

    def columns(self, table: int, *, state: bool) -> list[Column]:
        """See `protocol.Part.columns`."""
        memory, slots = self.memory, self.slots[table]
        counts = _slab_column("counts", memory.counts, slots)
        rows = _slab_column("rows", memory.rows, slots)
        if not state:
            return [_column("ids", self.ids[table]), counts, rows]
        keys, occurrences, ages = memory.waiting.entries(self.waiting[table])
        return [
            _column("ids", self.ids[table]),
            *(_column("dropped_ids", ids[table]) for ids in (self.dropped,) if ids),
            _column("waiting_ids", memory.key_space.ids_of(keys)),
            _column("waiting_counts", occurrences),
            _column("waiting_ages", ages),
            counts,
            _slab_column("last_step", memory.last_step, slots),
            *(_slab_column(f"state.{name}", slab, slots) for name, slab in memory.state.items()),
            rows,
        ]


def parts(memory: RowMemory, ranges: Sequence[tuple[int, int]], changes: Changes | None = None) -> Iterator[HostPart]:
    """The rows of a shard, or those that have changed, cut into ranges of buckets that do not overlap.

    Buckets of all keys are computed once, and one byte for each key remembers them; beyond that, work and memory are
    those of one part at a time.
    """
    tables = range(len(memory.tables))
    range_of = np.full(BUCKETS, len(ranges), dtype=np.min_scalar_type(len(ranges)))
    for number, (first, stop) in enumerate(ranges):
        range_of[first:stop] = number
    hashed = _ranges_of(memory, memory.index.keys, range_of)
    waiting = _ranges_of(memory, memory.waiting.all_keys, range_of)
    gone = changes.dropped if changes is not None else np.empty(0, dtype=np.int64)
    dropped = _ranges_of(memory, gone, range_of)
    for number, (first, stop) in enumerate(ranges):
        ids, slots, waiting_places = [], [], []
        places = _where(hashed, number)
        if changes is not None:
            places = places[changes.among(places + memory.dense, memory.counts.memory, memory.last_step.memory)]
        places, keys = _sorted_by_key(memory.index.keys, places)
        gone_here = gone[_where(dropped, number)]
        waits = _where(waiting, number)
        waits, waiting_keys = _sorted_by_key(memory.waiting.all_keys, waits[memory.waiting.waits(waits)])
        for table, config in enumerate(memory.tables):
            if config.num_embeddings is None:
                mine = memory.key_space.run_of(table, keys)
                ids.append(memory.key_space.ids_of(keys[mine]))
                slots.append(places[mine] + memory.dense)
            else:
                dense_ids, dense_slots = _dense_part(memory, table, first, stop, changes)
                ids.append(dense_ids)
                slots.append(dense_slots)
            waiting_places.append(waits[memory.key_space.run_of(table, waiting_keys)])
        left = [memory.key_space.ids_of(gone_here[memory.key_space.run_of(table, gone_here)]) for table in tables]
        dropped_ids = tuple(left) if changes is not None else ()
        yield HostPart(memory, first, stop, tuple(ids), tuple(slots), tuple(waiting_places), dropped_ids)


def rows_changed(memory: RowMemory) -> int:
    """See `RowStore.rows_changed`; all rows where nobody has watched."""
    changes, total = memory.changes, 0
    if changes is None:
        return sum(memory.row_counts())
    for start in range(0, memory.used, BLOCK_ROWS):
        slots = np.arange(start, min(start + BLOCK_ROWS, memory.used))
        slots = slots[(slots >= memory.dense) | (memory.counts.memory[start : start + len(slots)] > 0)]
        if len(slots):
            changed = changes.among(slots, memory.counts.memory, memory.last_step.memory)
            total += int(np.count_nonzero(changed))
    return total


def load(memory: RowMemory, table: int, tensors: Mapping[str, Tensor], *, waiting: bool) -> None:
    """See `RowStore.load`; `waiting`: also take over the ids that wait for admission."""
    _check(memory, table, tensors)
    for start in range(0, len(tensors["ids"]), BLOCK_ROWS):
        block = {name: tensor[start : start + BLOCK_ROWS] for name, tensor in tensors.items()}
        keys = memory.key_space.fuse(table, block["ids"])
        chosen = _owned(memory, keys)
        if memory.tables[table].num_embeddings is None:
            room.for_load(memory, table, keys[chosen].numpy(), waiting=False)
        slots = memory.place(keys[chosen].numpy())
        room.account(memory)
        memory.rows.put(slots, block["rows"][chosen])
        memory.counts.put(slots, block["counts"][chosen])
        memory.last_step.put(slots, block["last_step"][chosen])
        for name, slab in memory.state.items():
            slab.put(slots, block[f"state.{name}"][chosen])
    if not waiting:
        return
    keys = memory.key_space.fuse(table, tensors["waiting_ids"])
    chosen = _owned(memory, keys)
    room.for_load(memory, table, keys[chosen].numpy(), waiting=True)
    memory.waiting.restore(
        keys[chosen].numpy(), tensors["waiting_counts"][chosen].numpy(), tensors["waiting_ages"][chosen].numpy()
    )
    room.account(memory)


def not_finite(memory: RowMemory) -> str | None:
    """Name of a table that has a NaN or an infinity in a row seen in training; None where there is none."""
    end = memory.used
    for start in range(0, end, BLOCK_ROWS):
        slots = np.arange(start, min(start + BLOCK_ROWS, end))
        # The memory of a bounded table's row that was never met says nothing.
        slots = slots[(slots >= memory.dense) | (memory.counts.memory[start : start + len(slots)] > 0)]
        rows = memory.rows.take(slots)
        if not all_finite(rows):
            bad = ~torch.isfinite(rows).all(dim=1)
            slot = int(slots[int(bad.nonzero()[0])])
            return memory.table_of(slot).name
    return None


def _column(name: str, values: NDArray[np.int64] | NDArray[np.int32]) -> Column:
    tensor = torch.from_numpy(values)
    return Column(name, tensor.dtype, tuple(tensor.shape), lambda: [tensor])


def _slab_column(name: str, slab: Slab, slots: Int64Array) -> Column:
    return Column(name, slab.dtype, (len(slots), *slab.row_shape), _blocks(slab, slots))


def _blocks(slab: Slab, slots: Int64Array) -> Callable[[], Iterator[Tensor]]:
    starts = range(0, max(1, len(slots)), BLOCK_ROWS)
    return lambda: (slab.take(slots[start : start + BLOCK_ROWS]) for start in starts)


def _ranges_of(memory: RowMemory, keys: Int64Array, range_of: NDArray[Any]) -> NDArray[Any]:
    """Number of the range that each key's bucket is in."""
    numbers = np.empty(len(keys), dtype=range_of.dtype)
    for start in range(0, len(keys), _SCANNED_KEYS):
        some = torch.from_numpy(keys[start : start + _SCANNED_KEYS])
        numbers[start : start + _SCANNED_KEYS] = range_of[memory.key_space.buckets(some).numpy()]
    return numbers


def _where(numbers: NDArray[Any], number: int) -> Int64Array:
    """np.flatnonzero(numbers == number), without an array of that size."""
    found = [
        start + np.flatnonzero(numbers[start : start + _SCANNED_KEYS] == number)
        for start in range(0, len(numbers), _SCANNED_KEYS)
    ]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _sorted_by_key(all_keys: Int64Array, places: Int64Array) -> tuple[Int64Array, Int64Array]:
    """(places, their keys), by key: that is by table, then by id."""
    keys = all_keys[places]
    order = keys.argsort()
    return places[order], keys[order]


def _dense_part(
    memory: RowMemory, table: int, first_bucket: int, stop_bucket: int, changes: Changes | None
) -> tuple[Int64Array, Int64Array]:
    """(ids, slots) of a bounded table."""
    first, stop = memory.key_space.position_range(table, first_bucket, stop_bucket)
    offset = int(memory.bases[table] - memory.first_positions[table])
    first, stop = max(first + offset, int(memory.bases[table])), min(stop + offset, int(memory.bases[table + 1]))
    slots = first + np.flatnonzero(memory.counts.memory[first : max(first, stop)])
    if changes is not None:
        slots = slots[changes.among(slots, memory.counts.memory, memory.last_step.memory)]
    ids = memory.key_space.ids_of(memory.dense_keys(slots))
    order = ids.argsort()
    return ids[order], slots[order]


def _owned(memory: RowMemory, keys: Tensor) -> Tensor:
    buckets = memory.key_space.buckets(keys)
    first, stop = memory.buckets
    return (buckets >= first) & (buckets < stop)


def _check(memory: RowMemory, table: int, tensors: Mapping[str, Tensor]) -> None:
    where = f"table {memory.tables[table].name!r}"
    rows, waiting = len(tensors.get("ids", ())), len(tensors.get("waiting_ids", ()))
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "ids": ((rows,), torch.int64),
        "rows": ((rows, memory.dim), memory.dtype),
        "counts": ((rows,), torch.int32),
        "last_step": ((rows,), torch.int32),
        **{f"state.{name}": ((rows, *slab.row_shape), torch.float32) for name, slab in memory.state.items()},
        "waiting_ids": ((waiting,), torch.int64),
        "waiting_counts": ((waiting,), torch.int32),
        "waiting_ages": ((waiting,), torch.int32),
    }
    for name, (shape, dtype) in expected.items():
        if name not in tensors:
            raise CheckpointError(
                "tensor missing", value=name, where=where, hint="saved with another optimizer? start without it"
            )
        found = (tuple(tensors[name].shape), tensors[name].dtype)
        if found != (shape, dtype):
            raise CheckpointError(
                f"tensor {name} has shape and dtype {found}, the table needs {(shape, dtype)}",
                where=where,
                hint="dim, dtype and optimizer must be those that were saved",
            )
    for name in ("ids", "waiting_ids"):
        bad = (tensors[name] < 0) | (tensors[name] >= memory.key_space.limit(table))
        if bool(bad.any()):
            raise CheckpointError(
                "id outside the table",
                value=int(tensors[name][bad][0]),
                where=where,
                hint=f"ids must be in [0, {memory.key_space.limit(table)})",
            )
