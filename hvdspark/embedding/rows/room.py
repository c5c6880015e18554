"""Whether there is room for the rows of more ids, who gets it where there is not enough, and how it is made.

Asked before anything grows. What a shard takes is computed from how many ids it has: what slabs and indexes are at
most, with their spare memory and with what an eviction needs while it works. A slab grows in place (`slab`), so nothing
is there twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hvdspark.embedding.arrays import BoolArray, Int64Array
from hvdspark.embedding.plan.sharding import format_bytes
from hvdspark.embedding.rows.key_index import KeyIndex
from hvdspark.embedding.rows.memory import SPARE, RowMemory
from hvdspark.errors import MemoryBudgetError

# An eviction reads all rows, so it frees enough for many steps: it begins where less than 1/16 of the limit is free,
# and ends where 1/8 is.
_TOO_FULL, _FREED = 16, 8
_OF_EVICTION = 4 + 2  # for each id: a copy of its last step, and whether it stays, twice
_OF_CHANGES = 4  # for each row, whether they are asked for or not: what there is room for must not depend on it


def bytes_for(memory: RowMemory, ids: int, waiting: int) -> int:
    """The most that a shard takes with so many ids of unbounded tables that have a row, and so many that wait."""
    slabs = (memory.rows, memory.counts, memory.last_step, *memory.state.values())
    of_row = sum(slab.row_bytes for slab in slabs) + _OF_CHANGES
    evicts = any(table.at_limit == "evict" for table in memory.tables)
    slots = memory.dense + ids + ids // SPARE
    of_waiting = KeyIndex.bytes_for(waiting) + 8 * (waiting + waiting // SPARE)
    return slots * of_row + KeyIndex.bytes_for(ids) + of_waiting + (_OF_EVICTION * ids if evicts else 0)


def begin(memory: RowMemory) -> None:
    """Take what bounded tables take from the start, each row of them. Raises MemoryBudgetError."""
    if not _fits(memory, 0, 0):
        largest = int(np.diff(memory.bases).argmax())
        raise _error(memory, largest, int(memory.bases[largest + 1] - memory.bases[largest]), bytes_for(memory, 0, 0))
    account(memory)


def account(memory: RowMemory) -> None:
    """Say what the shard takes now."""
    memory.budget.take(memory, bytes_for(memory, len(memory.index), len(memory.waiting)))


def for_rows(memory: RowMemory, keys: Int64Array) -> BoolArray:
    """Which of some keys that are new and admitted get a row: all of them, while there is room.

    Where it is short, those of tables that raise at the limit come first, and then the others by ascending key.

    Raises:
        MemoryBudgetError: there is no room for a key of a table that raises.
    """
    if _fits(memory, len(keys), 0):
        return np.ones(len(keys), dtype=bool)
    tables = memory.key_space.tables_of(keys)
    strict = _are_of(memory, tables, "raise")
    most, waiting = len(memory.index) + len(keys), len(memory.waiting)
    room = _most_ids(memory, memory.budget.left_to(memory), most, waiting) - len(memory.index)
    if np.count_nonzero(strict) > max(room, 0):
        table = int(np.bincount(tables[strict]).argmax())
        needed = bytes_for(memory, most, waiting)
        raise _error(memory, table, memory.row_counts()[table], needed)
    chosen = np.zeros(len(keys), dtype=bool)
    chosen[np.lexsort((keys, ~strict))[: max(room, 0)]] = True
    return chosen


def for_waiting(memory: RowMemory, keys: Int64Array) -> BoolArray:
    """Which of some keys of tables with admission are counted: all of them, while there is room; then those that are
    counted already.

    Raises:
        MemoryBudgetError: there is no room for a key of a table that raises.
    """
    if _fits(memory, 0, len(keys)):
        return np.ones(len(keys), dtype=bool)
    known = memory.waiting.knows(keys)
    if _fits(memory, 0, int(np.count_nonzero(~known))):
        return np.ones(len(keys), dtype=bool)
    tables = memory.key_space.tables_of(keys)
    strict = _are_of(memory, tables, "raise") & ~known
    if strict.any():
        table = int(np.bincount(tables[strict]).argmax())
        needed = bytes_for(memory, len(memory.index), len(memory.waiting) + len(keys))
        raise _error(memory, table, memory.row_counts()[table], needed)
    return known


def for_load(memory: RowMemory, table: int, keys: Int64Array, *, waiting: bool) -> None:
    """Make sure that keys of a file find room, for their rows or where they wait for admission. A table that evicts
    gives up rows for them.

    Raises:
        MemoryBudgetError: they do not.
    """
    known = memory.waiting.knows(keys) if waiting else memory.index.find(keys) >= 0
    count = int(np.count_nonzero(~known))
    more = (0, count) if waiting else (count, 0)
    if _fits(memory, *more):
        return
    if memory.tables[table].at_limit == "evict":
        most = len(memory.index) + more[0]
        _evict(memory, _most_ids(memory, memory.budget.left_to(memory), most, len(memory.waiting) + more[1]) - more[0])
    if not _fits(memory, *more):
        ids, waits = len(memory.index) + more[0], len(memory.waiting) + more[1]
        raise _error(memory, table, memory.row_counts()[table], bytes_for(memory, ids, waits))


def is_short(memory: RowMemory) -> bool:
    """Whether tables of the shard have to give up rows now."""
    if not any(table.at_limit == "evict" for table in memory.tables):
        return False
    taken = bytes_for(memory, len(memory.index), len(memory.waiting))
    return memory.budget.left_to(memory) - taken < memory.budget.limit // _TOO_FULL


def make(memory: RowMemory) -> int:
    """Give up rows of tables that evict at the limit, and what waits for admission in vain; how many rows.

    The rows that were not updated for the longest time go first; of those of one step the ones that were met in the
    fewest steps, and of these the ones with the smallest ids.
    """
    keys = memory.waiting.all_keys
    if len(keys):
        memory.waiting.forget(_are_of(memory, memory.key_space.tables_of(keys), "evict"))
    free = memory.budget.limit // _FREED
    left = memory.budget.left_to(memory) - free
    dropped = _evict(memory, _most_ids(memory, left, len(memory.index), len(memory.waiting)))
    account(memory)
    return dropped


def _evict(memory: RowMemory, ids: int) -> int:
    """Keep so many ids, or as many as other tables have."""
    keys = memory.index.keys
    mine = np.flatnonzero(_are_of(memory, memory.key_space.tables_of(keys), "evict"))
    count = min(len(mine), len(keys) - max(ids, 0))
    if count <= 0:
        return 0
    steps = memory.last_step.memory[memory.dense : memory.used][mine]
    last = np.partition(steps, count - 1)[count - 1]
    older, same = mine[steps < last], mine[steps == last]
    order = np.lexsort((keys[same], memory.counts.memory[memory.dense + same]))
    kept = np.ones(len(keys), dtype=bool)
    kept[older] = kept[same[order[: count - len(older)]]] = False
    memory.keep(kept)
    return count


def _fits(memory: RowMemory, more_ids: int, more_waiting: int) -> bool:
    needed = bytes_for(memory, len(memory.index) + more_ids, len(memory.waiting) + more_waiting)
    return needed <= memory.budget.left_to(memory)


def _most_ids(memory: RowMemory, room: int, most: int, waiting: int) -> int:
    """The largest number of ids, up to `most`, that takes no more than `room` bytes; 0 where none does."""
    least = 0
    while least < most:
        middle = math.ceil((least + most) / 2)
        if bytes_for(memory, middle, waiting) <= room:
            least = middle
        else:
            most = middle - 1
    return least


def _are_of(memory: RowMemory, tables: Int64Array, at_limit: str) -> BoolArray:
    """Which numbers of tables are those of tables that do this at the limit."""
    does: Sequence[bool] = [table.at_limit == at_limit for table in memory.tables]
    return np.array(does, dtype=bool)[tables]


def _error(memory: RowMemory, number: int, rows: int, needed: int) -> MemoryBudgetError:
    name, budget = memory.tables[number].name, memory.budget
    total = budget.limit - budget.left_to(memory) + needed
    bounded = memory.tables[number].num_embeddings is not None
    instead = "" if bounded else ", or let it refuse new ids or evict old rows (at_limit of its "
    "TableConfig, embeddingAtLimit of a CTRClassifier)"
    return MemoryBudgetError(
        f"there is no room for more rows of an embedding table: the tables of this rank would take "
        f"{format_bytes(total)}, and they may take {format_bytes(budget.limit)}",
        table=name,
        rows=rows,
        bytes=total,
        limit=budget.limit,
        setting=budget.setting,
        where=f"table {name!r} with {rows:,} rows on rank {memory.rank}, {budget.setting}",
        hint=f"raise {budget.setting}, use more workers, a smaller dim or dtype='float16'{instead}",
    )
