"""What the ranks do for one group of tables in a step: ids to their owners, rows back, gradients to the owners.

Three alltoall calls for each group, step and forward pass, whatever the number of tables, named
`<group>/ids`, `<group>/rows` and `<group>/gradients`. Every rank takes part with however few ids, also none. Bytes that
leave a rank with U distinct keys of dimension D, b bytes an element, W ranks: U * (8 + 2 * D * b) * (W - 1) / W, and
16 bytes of header for each other rank. While ids of the group wait for admission, each key travels with the number of
its lookups: 8 bytes more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hvdspark.collectives import Collective
from hvdspark.embedding.arrays import all_finite
from hvdspark.embedding.graphs import memory_that_lasts
from hvdspark.embedding.ids.bad_id import BadId, BadIdError
from hvdspark.embedding.ids.distinct import Route, Unique, all_distinct, sum_equal, unique
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.phases import (
    DISTINCT,
    EXCHANGE_GRADIENTS,
    EXCHANGE_IDS,
    EXCHANGE_ROWS,
    FIND_ROWS,
    UPDATE,
    phase,
)
from hvdspark.embedding.rows.protocol import RowStore

# Before the keys for each rank: 1 + the number of a feature with a bad id, and that id; or 0, and whether the keys are
# followed by how often each of them occurs.
_HEADER = 2
_GROWTH = 1.5


@dataclass(frozen=True)
class Asked:
    """The keys of one forward pass at their owners.

    Attributes:
        distinct, route, splits: as in `Lookup`.
        keys: the keys among those that the ranks asked this one for.
        times: int64 [G], lookups of each of them, over all ranks; None where nobody counts.
    """

    distinct: Unique
    route: Route
    splits: Tensor
    keys: Unique
    times: Tensor | None = None


@dataclass(frozen=True)
class Lookup:
    """The rows of one forward pass, and what is needed to bring their gradients home.

    Attributes:
        distinct: this rank's keys, of L lookups.
        rows: float32 [U, D], the row of every distinct key; the leaf of autograd if the pass is a training one.
        route: how this rank's keys travelled.
        splits: int32 [world size], how many keys each rank asked this one for, R in all.
        asked: the keys among those R.
        slots: int64 [G], where the shard keeps them; -1: nowhere.
    """

    distinct: Unique
    rows: Tensor
    route: Route
    splits: Tensor
    asked: Unique
    slots: Tensor


@dataclass(frozen=True)
class Reduced:
    """Gradients of the global batch for the rows that this rank owns.

    Attributes:
        slots: int64 [G], unique.
        gradients: float32 [G, D], summed over the ranks. May be scaled in place before the update.
        diverged: ranks that have a gradient that is not finite: the same on every rank. If there is one, no gradients
            were exchanged.
    """

    slots: Tensor
    gradients: Tensor
    diverged: tuple[int, ...] = ()

    def without_missing(self) -> Reduced:
        """Without slots of -1: ids that are not admitted yet have no row, and their gradients count nowhere."""
        kept = self.slots >= 0
        if bool(kept.all()):
            return self
        return replace(self, slots=self.slots[kept], gradients=self.gradients[kept])


class GroupExchange:
    """The exchange of one group.

    Args:
        name: of the group, the same on every rank and in every step.
        shard: this rank's rows.
        collective: of all ranks that hold the group.
        owners: int64 [world size], see `KeySpace.route`.
        wire_dtype: of rows and gradients on their way. float16 has no room for gradients below 6e-8, which a mean over
            a large batch can reach; bfloat16 has, and takes its place for gradients.
    """

    def __init__(
        self,
        name: str,
        shard: RowStore,
        dim: int,
        collective: Collective,
        wire_dtype: torch.dtype = torch.float32,
        owners: Tensor | None = None,
    ) -> None:
        self.name, self.shard = name, shard
        self.collective, self._owners = collective, owners
        self._keys = _Buffer(torch.int64)
        self._rows = _Buffer(wire_dtype, dim)
        self._gradients = _Buffer(torch.bfloat16 if wire_dtype == torch.float16 else wire_dtype, dim)

    @property
    def key_space(self) -> KeySpace:
        return self.shard.key_space

    def look_up(self, keys: Unique, *, train: bool, bad: BadId | None = None) -> Lookup:
        """Collective: two alltoall calls. The rows of some keys.

        Args:
            keys: of the shard's key space, valid, in any order and number.
            train: insert and count keys, and let autograd collect gradients in `rows.grad`.
            bad: what is wrong with this rank's ids (then `keys` may as well be none); the others hear of it in the
                exchange of the keys, so that all ranks fail instead of waiting for this one.

        Raises:
            BadIdError: on every rank, before any shard has changed.
        """
        return self.answer(self.ask(keys, train=train, bad=bad)(), train=train)()

    def ask(self, distinct: Unique, *, train: bool, bad: BadId | None = None) -> Callable[[], Asked]:
        """Collective: begins one alltoall call. Keys to their owners, the first half of `look_up`.

        Looks at no row, so it may run before the update of the step before.

        Args:
            train: also tell how often each key occurs, where ids of the group wait for admission.

        Returns: what waits for the call to end, and raises BadIdError on every rank.
        """
        with phase(DISTINCT):
            way = self.shard.key_space.route(distinct.keys, self.collective.size, self._owners)
        sent = [distinct.keys]
        if train and self.shard.counts_occurrences:
            sent.append(distinct.times)
        if way.order is not None:
            sent = [values[way.order] for values in sent]
        with phase(EXCHANGE_IDS):
            received = self._send_keys(sent, way.splits, bad)

        def wait() -> Asked:
            with phase(EXCHANGE_IDS):
                asked, times, splits = _without_headers(*received())
            with phase(DISTINCT):
                # What one rank asks for is distinct already.
                keys = unique(asked) if int((splits > 0).sum()) > 1 else all_distinct(asked)
            if times is not None and not keys.trivial:
                times = torch.zeros_like(keys.keys).index_add_(0, keys.inverse, times)
            return Asked(distinct, way, splits, keys, times)

        return wait

    def answer(self, asked: Asked, *, train: bool) -> Callable[[], Lookup]:
        """Collective: begins one alltoall call. Rows as they are now to those who asked, the second half of `look_up`.

        Returns: what waits for the call to end.
        """
        with phase(FIND_ROWS):
            slots = self.shard.slots(asked.keys.keys, insert=train, times=asked.times)
            owned = self.shard.gather(slots, met=train)
        with phase(EXCHANGE_ROWS):
            answer = self._rows.filled(owned, None if asked.keys.trivial else asked.keys.inverse)
            received = self.collective.alltoall_async(answer, asked.splits, f"{self.name}/rows")

        def wait() -> Lookup:
            with phase(EXCHANGE_ROWS):
                rows = received()[0].float()
                if asked.route.place is not None:
                    rows = rows.index_select(0, asked.route.place)
            rows.requires_grad_(train)
            return Lookup(asked.distinct, rows, asked.route, asked.splits, asked.keys, slots)

        return wait

    def reduce(self, lookups: Sequence[Lookup]) -> Reduced:
        """Collective: one alltoall for each lookup. Bring gradients to the owners, and add them up.

        The gradients of all ranks and all lookups are *summed*. Where the loss is this rank's sum divided by the weight
        of the global batch, that is the gradient of the global mean. A rank whose `rows.grad` is None sends nothing;
        rows for which no rank has a gradient are left out.

        Args:
            lookups: training ones since the last update, as many on every rank, in the same order.
        """
        with phase(EXCHANGE_GRADIENTS):
            parts = [self._send_gradients(lookup) for lookup in lookups]
        diverged = tuple(sorted({rank for part in parts for rank in part.diverged}))
        if diverged:
            return replace(parts[0], diverged=diverged)
        if len(parts) == 1:
            return parts[0].without_missing()
        slots = torch.cat([part.slots for part in parts])
        kept = slots >= 0
        distinct = unique(slots[kept])
        return Reduced(distinct.keys, sum_equal(torch.cat([part.gradients for part in parts])[kept], distinct))

    def update(self, reduced: Reduced, step: int, learning_rate_factor: float = 1.0) -> None:
        """Update each row once with what `reduce` brought, and evict what is due. Not collective.

        Args:
            step: number of the step.
            learning_rate_factor: of the optimizer's learning rate, in this step; 0 leaves rows and state as they are.
        """
        if learning_rate_factor > 0:
            with phase(UPDATE):
                self.shard.update(reduced.slots, reduced.gradients, step, learning_rate_factor)
        self.shard.evict(step)

    def _send_keys(
        self, values: Sequence[Tensor], splits: Tensor, bad: BadId | None
    ) -> Callable[[], tuple[Tensor, Tensor]]:
        """Collective. A header and the keys that are for it, and maybe how often each occurs, to each rank."""
        header = torch.tensor([0, len(values) - 1] if bad is None else [1 + bad.feature, bad.id])
        for_ranks = zip(*(some.split(splits.tolist()) for some in values), strict=True)
        parts = [part for mine in for_ranks for part in (header, *mine)]
        buffer, sizes = self._keys.filled(torch.cat(parts)), splits * len(values) + _HEADER
        return self.collective.alltoall_async(buffer, sizes, f"{self.name}/ids")

    def _send_gradients(self, lookup: Lookup) -> Reduced:
        """Collective. The slots with a gradient of one lookup, and the sum of it over the ranks."""
        gradient, splits = lookup.rows.grad, lookup.route.splits
        if gradient is None:
            gradient, splits = lookup.rows.detach(), torch.zeros_like(splits)
        buffer = self._gradients.filled(gradient, lookup.route.order)
        count = int(splits.sum())
        if not all_finite(buffer[:count]):
            # One row too many tells every rank, in the exchange that happens anyway.
            splits = splits + 1
            buffer = self._gradients.filled(buffer.new_full((count + len(splits), buffer.shape[1]), torch.nan))
        received, received_splits = self.collective.alltoall(buffer, splits, f"{self.name}/gradients")
        diverged = (received_splits > lookup.splits).nonzero().squeeze(1).tolist()
        if diverged:
            return Reduced(lookup.slots[:0], buffer.new_zeros(0, buffer.shape[1]), tuple(diverged))
        values = received.float()
        if torch.equal(received_splits, lookup.splits):
            return Reduced(lookup.slots, sum_equal(values, lookup.asked))
        came = torch.repeat_interleave(received_splits > 0, lookup.splits.long())
        all_values = values.new_zeros(len(came), values.shape[1])
        all_values[came] = values
        touched = torch.zeros(len(lookup.slots), dtype=torch.bool)
        touched[lookup.asked.inverse[came]] = True
        return Reduced(lookup.slots[touched], sum_equal(all_values, lookup.asked)[touched])


def _without_headers(received: Tensor, splits: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The keys that all ranks ask this one for, int64 [R]; how often each occurs, int64 [R], or None where no rank
    counts; how many keys each rank sent, int32 [world size].

    Raises:
        BadIdError: a header says so.
    """
    asked, times, counted = [], [], False
    for rank, part in enumerate(received.split(splits.tolist())):
        feature, value = part[:_HEADER].tolist()
        if feature:
            raise BadIdError(BadId(feature - 1, value, rank))
        keys = part[_HEADER:]
        if value:
            counted = True
            keys, often = keys.tensor_split(2)
            times.append(often)
        asked.append(keys)
    sizes = torch.tensor([len(keys) for keys in asked], dtype=splits.dtype)
    return torch.cat(asked), torch.cat(times) if counted else None, sizes


class _Buffer:
    """Memory to send from, of a constant shape: Horovod negotiates a name anew whenever its shape changes.

    It grows where it must, on each rank by itself: Horovod asks only that the ranks agree on the other dimensions.
    """

    def __init__(self, dtype: torch.dtype, *shape: int) -> None:
        self._memory = torch.empty(1, *shape, dtype=dtype)

    def filled(self, values: Tensor, index: Tensor | None = None) -> Tensor:
        """The whole buffer; its first rows are `values` (or values[index]), the rest is left over."""
        count = len(values) if index is None else len(index)
        if count > len(self._memory):
            with memory_that_lasts():
                self._memory = self._memory.new_empty(int(count * _GROWTH), *self._memory.shape[1:])
        if index is None:
            self._memory[:count] = values
        elif values.dtype == self._memory.dtype:
            torch.index_select(values, 0, index, out=self._memory[:count])
        else:
            self._memory[:count] = values.to(self._memory.dtype).index_select(0, index)
        return self._memory
