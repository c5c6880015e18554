"""From the memory that ranks share to what each of them may use. Pure.

What is kept back for interpreter, torch and batches is an estimate, and a refusal has to be right. So a rank gets at
least half of its share for tables, and no limit that was only derived is tighter than what fits need.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvdspark.rank_limit import RankLimit

GIB = 1 << 30
RANK_MEMORY = "spark.hvdspark.rankMemory"
UNLIMITED = "unlimited"
# Measured on Linux, torch 2.13: a rank with torch, Horovod and Petastorm's reader 0.41 GiB, the barrier task beside it
# 0.11; the rest is for batches and row groups that are being read and for dense layers.
RANK_BYTES = int(0.7 * GIB)
# Small clusters run small fits beside a heap that the JVM has not taken: what is below this would end those.
_LEAST_DERIVED = 2 * GIB


@dataclass(frozen=True)
class MemoryBudget:
    """Memory in bytes, and what one would raise to have more.

    Attributes:
        setting: a Spark setting, "the cgroup's memory limit" or "this machine's memory".
    """

    bytes: int
    setting: str


@dataclass(frozen=True)
class MemoryTerms:
    """What the launcher knows about the memory of a rank; the rank's task adds what its host says. Plain data.

    Attributes:
        limited: False where the user wants no limit.
        budget: for the tables of each rank; None where only the host can say.
        heap: bytes that the JVM beside the ranks may take on such a host.
    """

    limited: bool = True
    budget: MemoryBudget | None = None
    heap: int = 0

    def on(self, machine: MemoryBudget, ranks: int) -> RankLimit | None:
        """The limit of each of `ranks` ranks on a machine; None: it has none."""
        if not self.limited:
            return None
        budget = self.budget or rank_share(machine, self.heap, ranks)
        total = budget.bytes + RANK_BYTES
        if budget.setting != RANK_MEMORY:
            total = max(total, _LEAST_DERIVED)
        return RankLimit(total, total - RANK_BYTES, budget.setting)


def rank_share(machine: MemoryBudget, heap: int, ranks: int) -> MemoryBudget:
    """What each of the ranks on a machine may use for tables, beside a JVM."""
    return MemoryBudget(less(less(machine.bytes, heap) // ranks, RANK_BYTES), machine.setting)


def less(total: int, kept_back: int) -> int:
    """What is left, at least half of it."""
    return max(total - kept_back, total // 2)
