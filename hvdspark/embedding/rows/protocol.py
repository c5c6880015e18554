"""What exchange, files and updates ask of one rank's rows, wherever these lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hvdspark.embedding.arrays import Int64Array
from hvdspark.embedding.config import SparseOptimizer, TableConfig
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.rows.column import Column


class Part(Protocol):
    """The rows that a store has in some buckets. Valid until the store changes."""

    @property
    def first(self) -> int:
        """The first of the buckets."""
        ...

    @property
    def stop(self) -> int:
        """The one after the last of them."""
        ...

    @property
    def ids(self) -> Sequence[Int64Array]:
        """For each table the ids that were met in training, ascending."""
        ...

    @property
    def waiting(self) -> Sequence[Int64Array]:
        """For each table something of each id that waits for admission."""
        ...

    @property
    def dropped(self) -> Sequence[Int64Array]:
        """Of a part of changes, for each table the ids that were dropped since, ascending, also those that came again;
        of another part nothing."""
        ...

    def columns(self, table: int, *, state: bool) -> list[Column]:
        """The tensors of one table.

        "ids" int64 [n], ascending, "counts" int32 [n] (steps that met the id) and "rows" [n, D] in the table's dtype.
        With `state` also "last_step" int32 [n] (of the last update; before the first one, the latest step when the id
        was first met), "state.<name>" float32 [n, ...] for each of the optimizer's states, and for ids that wait for
        admission "waiting_ids" int64 [m], ascending, "waiting_counts" int32 [m] and "waiting_ages" int32 [m] (passes of
        `evict` since the last sighting). A part of changes also has "dropped_ids" int64 [k], after "ids".
        """
        ...


class RowStore(Protocol):
    """Rows, optimizer state and counts of the keys that one rank owns, for all tables of one group.

    A group is tables of one (dim, dtype, optimizer). Everything is asked for by the fused int64 *keys* of `key_space`,
    which the exchange also sends, and then by *slots*: numbers that stay valid until `evict` or `load`. Keys, slots,
    rows and gradients are tensors on `device`; those of `Part.columns` and `load` are on the CPU. No call is
    collective, and no store is thread-safe.

    One training step is

        slots = store.slots(keys, insert=True)       # once for each step: it counts the sighting of every key
        rows = store.gather(slots, met=True)         # float32 [n, D]
        store.update(slots, gradients, step)         # gradients summed over the global batch
        store.evict(step)
    """

    @property
    def tables(self) -> tuple[TableConfig, ...]: ...

    @property
    def dim(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of stored rows."""
        ...

    @property
    def optimizer(self) -> SparseOptimizer: ...

    @property
    def key_space(self) -> KeySpace: ...

    @property
    def buckets(self) -> tuple[int, int]:
        """Those that are this rank's: [first, stop)."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def counts_occurrences(self) -> bool:
        """Whether training counts how often ids occur that wait for admission."""
        ...

    def count_occurrences(self, counting: bool) -> None:
        """Count occurrences from now on; or do not any more: then ids that wait for admission are forgotten, and no id
        of a table with admission gets a new row."""
        ...

    def slots(self, keys: Tensor, insert: bool, times: Tensor | None = None) -> Tensor:
        """Slot of every key, -1 where it has none (unknown and not inserted, or not admitted yet).

        Args:
            keys: unique fused keys, int64 [n], valid and owned by this rank; any order.
            insert: training: give new keys a slot (if admitted) with their initial row, and count the sighting of every
                key. False (evaluation) changes nothing at all.
            times: int64 [n], how often each key occurs in the global batch, for admission; None: once.

        Returns: int64 [n].
        """
        ...

    def gather(self, slots: Tensor, *, met: bool = False) -> Tensor:
        """Rows as float32 [n, D] (a copy); zeros where the slot is -1. Changes nothing.

        Args:
            met: the slots are those of keys that training has met, as with `slots(..., insert=True)`. Others of bounded
                tables give their initial row.
        """
        ...

    def update(self, slots: Tensor, gradients: Tensor, step: int, learning_rate_factor: float = 1.0) -> None:
        """Apply the optimizer once to each slot.

        Args:
            slots: int64 [n] from `slots(..., insert=True)`, unique except for -1, whose gradients are dropped.
            gradients: float32 [n, D], already summed over duplicates and ranks.
            step: number of the training step, 0 <= step < 2**31; remembered for eviction and delta checkpoints.
            learning_rate_factor: of the optimizer's learning rate, from a schedule; > 0.
        """
        ...

    def evict(self, step: int) -> int:
        """Drop the rows that the eviction rules of their tables give up now; all slots are invalid afterwards.

        To be called after the update of every step: does nothing unless step > 0 is a multiple of `every_steps` of some
        table. Ids of that table that wait for admission and were not met since the last such step go, too; those of a
        table with `forget_after_steps` at its multiples.

        Returns: rows dropped.
        """
        ...

    def parts(self, ranges: Sequence[tuple[int, int]], *, changed: bool = False) -> Iterator[Part]:
        """The rows met in training, by ranges [first, stop) of buckets that do not overlap.

        All others of a bounded table are its initial rows.

        Args:
            changed: rows, with state, that are not what they were at the last `watch`; but all ids that wait.
        """
        ...

    def watch(self) -> None:
        """From now on rows count as changed that are no longer what they are now."""
        ...

    def rows_changed(self) -> int:
        """How many rows are not what they were at the last `watch`."""
        ...

    def load(self, table: int, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `Part.columns` gave with state, from any world size; ids of other ranks are left out.

        May be called many times, with different parts. Rows that are there already are overwritten.

        Raises:
            CheckpointError: a tensor is missing or has the wrong shape or dtype, or an id is not one of this table.
        """
        ...

    def resume(self, step: int) -> None:
        """After `load`: go on as if the last update had been that of this step."""
        ...

    def row_counts(self) -> list[int]:
        """Rows of each table met in training, on this rank."""
        ...

    def not_finite(self) -> str | None:
        """Name of a table that has a NaN or an infinity in a row seen in training; None where there is none."""
        ...
