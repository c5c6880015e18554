"""Which rows a shard gives up by the rules of its tables or for want of room, and which ids that wait it forgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvdspark.embedding.arrays import BoolArray
from hvdspark.embedding.rows import room
from hvdspark.embedding.rows.memory import BLOCK_ROWS, RowMemory


def evict(memory: RowMemory, step: int) -> int:
    """See `RowStore.evict`."""
    dropped = _by_rule(memory, step)
    if room.is_short(memory):
        memory.step = step
        dropped += room.make(memory)
    return dropped


def _by_rule(memory: RowMemory, step: int) -> int:
    _forget(memory, step)
    due = [
        number
        for number, table in enumerate(memory.tables)
        if table.eviction is not None and step > 0 and step % table.eviction.every_steps == 0
    ]
    if not due:
        return 0
    memory.step = step
    kept = np.empty(len(memory.index), dtype=bool)
    for start in range(0, len(kept), BLOCK_ROWS):
        kept[start : start + BLOCK_ROWS] = _kept(memory, due, step, start, min(start + BLOCK_ROWS, len(kept)))
    dropped = len(kept) - int(np.count_nonzero(kept))
    if dropped:
        memory.keep(kept)
        room.account(memory)
    return dropped


def _kept(memory: RowMemory, due: Sequence[int], step: int, start: int, stop: int) -> BoolArray:
    """Which of the ids [start, stop) of unbounded tables stay; counts that were looked at are halved."""
    places = slice(memory.dense + start, memory.dense + stop)
    table_of = memory.key_space.tables_of(memory.index.keys[start:stop])
    counts, ages = memory.counts.memory[places], step - memory.last_step.memory[places]
    kept = np.ones(stop - start, dtype=bool)
    for number in due:
        rule = memory.tables[number].eviction
        assert rule is not None
        mine = table_of == number
        if rule.max_age_steps is not None:
            kept &= ~(mine & (ages >= rule.max_age_steps))
        if rule.min_count is not None:
            kept &= ~(mine & (counts < rule.min_count))
            counts[mine] >>= 1
    return kept


def _forget(memory: RowMemory, step: int) -> None:
    """Ids that wait for admission and did not come again."""
    periods = [
        table.admission.forget_after_steps or (table.eviction.every_steps if table.eviction else 0)
        for table in memory.tables
    ]
    due = [number for number, period in enumerate(periods) if period and step > 0 and step % period == 0]
    if due:
        keys = memory.waiting.all_keys
        passed = np.empty(len(keys), dtype=bool)
        for start in range(0, len(keys), BLOCK_ROWS):
            some = memory.key_space.tables_of(keys[start : start + BLOCK_ROWS])
            passed[start : start + BLOCK_ROWS] = np.isin(some, due)
        memory.waiting.forget(passed)
