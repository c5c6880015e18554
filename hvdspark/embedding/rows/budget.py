"""What the rows of sharded tables may take of the memory of this process, all groups of tables together."""

from __future__ import annotations

import functools
import os
import weakref

from hvdspark.rank_limit import RankLimit

# No limit: more than any machine has.
_ENDLESS = RankLimit(1 << 62, 1 << 62, "")


class RowBudget:
    """Bytes that several stores share; each says how many it takes. Stores that are gone take none.

    What a store says follows from how many rows and ids it has, not from how it came to have them: so a run that was
    resumed is told the same as one that was never interrupted.

    Args:
        limit: of the process.
    """

    def __init__(self, limit: RankLimit | None) -> None:
        limit = limit or _ENDLESS
        self.limit, self.setting = limit.rows, limit.setting
        self._taken: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()

    def take(self, owner: object, count: int) -> None:
        """`owner` takes `count` bytes, in place of what it took before."""
        self._taken[owner] = count

    def left_to(self, owner: object) -> int:
        """Bytes that an owner may take in all; others keep theirs."""
        return self.limit - sum(count for other, count in self._taken.items() if other is not owner)


@functools.cache
def budget_of_process() -> RowBudget:
    """That of this process, as its environment says."""
    return RowBudget(RankLimit.of(os.environ))
