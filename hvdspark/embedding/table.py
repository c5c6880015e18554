"""The rows of one group of tables that this rank owns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hvdspark.embedding.config import TableConfig
from hvdspark.embedding.keys import KeySpace


class TableShard:
    """Rows, optimizer state and counts of the keys that one rank owns, for all tables of one group.

    A group is tables of one (dim, dtype, optimizer). They share one slab; a row of it is called a *slot*. Everything
    is asked for by the fused int64 *keys* of `keys.KeySpace` (`shard.key_space`), which the exchange also sends.

    Not thread-safe. Slots stay valid until `evict` or `load`; inserting never moves them.

    One training step is

        slots = shard.slots(keys, insert=True)       # once for each step: it counts the sighting of every key
        rows = shard.gather(slots)                   # float32 [n, D]
        shard.update(slots, gradients, step)         # gradients summed over the global batch

    Args:
        tables: configurations of the group's tables, in the same order on every rank.
        rank, world_size: decide which buckets are ours. Asking for a key of another rank is an error.
        seed: of the initial rows.
        home_buckets: from the plan, see `KeySpace`.
    """

    key_space: KeySpace

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        home_buckets: Sequence[int] | None = None,
    ) -> None:
        raise NotImplementedError

    def slots(self, keys: Tensor, insert: bool) -> Tensor:
        """Slot of every key, -1 where it has none (unknown and not inserted, or not admitted yet).

        Args:
            keys: unique fused keys, int64 [n], all owned by this rank and valid; any order.
            insert: training: give new keys of unbounded tables a slot (if admitted) with their initial row, and count
                the sighting of every key. False (evaluation, scoring) changes nothing at all.

        Returns: int64 [n].
        """
        raise NotImplementedError

    def gather(self, slots: Tensor) -> Tensor:
        """Rows as float32 [n, D] (a copy); zeros where the slot is -1. Changes nothing."""
        raise NotImplementedError

    def update(self, slots: Tensor, gradients: Tensor, step: int) -> None:
        """Apply the optimizer once to each slot.

        Args:
            slots: int64 [n], unique except for -1, whose gradients are dropped.
            gradients: float32 [n, D], already summed over duplicates and ranks.
            step: number of the training step, counted from 0 or 1, < 2**31; remembered for eviction.
        """
        raise NotImplementedError

    def evict(self, step: int) -> int:
        """Drop the rows that the eviction rules of their tables give up now; all slots are invalid afterwards.

        To be called after the update of every step: does nothing unless step is a multiple of `every_steps` of some
        table. Returns the number of rows dropped.
        """
        raise NotImplementedError

    def export(self, table: int, first_bucket: int = 0, stop_bucket: int = 4096) -> dict[str, Tensor]:
        """Copies of the rows of one table in the buckets [first_bucket, stop_bucket) that were met in training.

        Rows never met are not in it: they are what `initial_rows` says. Sorted by bucket. Keys of the dict:
        "ids" int64 [n], "rows" [n, D] in the table's dtype, "counts" int32 [n], "last_step" int32 [n] (-1: never
        updated), "state.<name>" float32 [n, ...] for each of the optimizer's states, and for ids that wait for
        admission "waiting_ids" int64 [m], "waiting_counts" int32 [m].
        """
        raise NotImplementedError

    def load(self, table: int, tensors: dict[str, Tensor]) -> None:
        """Take over what `export` gave, from any world size; ids that this rank does not own are left out.

        May be called many times, with different parts. Raises CheckpointError when a tensor is missing or has the
        wrong shape or dtype.
        """
        raise NotImplementedError

    def row_counts(self) -> list[int]:
        """Rows of each table met in training, on this rank."""
        raise NotImplementedError

    def bytes_used(self) -> int:
        """Bytes of rows, state, counts, keys and index, as allocated."""
        raise NotImplementedError
