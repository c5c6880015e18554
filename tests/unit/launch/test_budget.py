"""What a rank may use of the memory that ranks share."""

from __future__ import annotations

import pytest

from hvdspark.launch.budget import RANK_BYTES, RANK_MEMORY, MemoryBudget, MemoryTerms
from hvdspark.rank_limit import RankLimit
from hvdspark.specs import from_json, to_json

GIB = 1 << 30
OVERHEAD = "spark.executor.memoryOverhead"
MACHINE = MemoryBudget(32 * GIB, "this machine's memory")


@pytest.mark.parametrize(
    ("terms", "machine", "ranks", "expected"),
    [
        # What the driver knows counts, whatever the machine has.
        (MemoryTerms(budget=MemoryBudget(4 * GIB, OVERHEAD)), MACHINE, 2, (4 * GIB + RANK_BYTES, OVERHEAD)),
        # Where it knows nothing, ranks share the machine with the heap of their executor.
        (MemoryTerms(heap=2 * GIB), MACHINE, 3, (10 * GIB, MACHINE.setting)),
        (MemoryTerms(heap=30 * GIB), MACHINE, 2, (8 * GIB, MACHINE.setting)),
        # What was only derived is never too tight for small fits; what the user says is taken as it is.
        (MemoryTerms(budget=MemoryBudget(1 << 20, OVERHEAD)), MACHINE, 2, (2 * GIB, OVERHEAD)),
        (MemoryTerms(), MemoryBudget(GIB, "the cgroup's memory limit"), 4, (2 * GIB, "the cgroup's memory limit")),
        (MemoryTerms(budget=MemoryBudget(GIB - RANK_BYTES, RANK_MEMORY)), MACHINE, 2, (GIB, RANK_MEMORY)),
    ],
)
def test_the_limit_of_a_rank(terms: MemoryTerms, machine: MemoryBudget, ranks: int, expected: tuple[int, str]) -> None:
    limit = terms.on(machine, ranks)
    assert limit is not None
    assert abs(limit.bytes - expected[0]) < 2, "to a byte of rounding"
    assert (limit.setting, limit.rows) == (expected[1], limit.bytes - RANK_BYTES)
    assert from_json(MemoryTerms, to_json(terms)) == terms, "it travels to tasks as JSON"


def test_a_user_may_want_no_limit() -> None:
    assert MemoryTerms(limited=False, budget=MemoryBudget(GIB, OVERHEAD)).on(MACHINE, 1) is None


def test_the_environment_says_the_limit() -> None:
    limit = RankLimit(3 * GIB, 2 * GIB, "this machine's memory")
    assert RankLimit.of({"HOME": "/", **limit.environment()}) == limit
    assert RankLimit.of({"HOME": "/"}) is None
