"""A process that wants more than its limit: the allocation fails, and the failure is told apart and named."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from hvdspark.errors import MemoryBudgetError
from hvdspark.launch import limit
from hvdspark.rank_limit import RankLimit

LIMIT = RankLimit(3 << 30, 2 << 30, "spark.executor.memoryOverhead")

LEAK = """
from hvdspark.launch import limit
from hvdspark.rank_limit import RankLimit
limit.begin(RankLimit(64 << 20, 32 << 20, "the setting"), {device!r}, "rank 3 on host h")
held = []
try:
    while sum(map(len, held)) < 2 << 30:
        held.append(bytes(16 << 20))
    print("no limit")
except MemoryError as error:
    limit.lift()
    found = limit.exceeded(error)
    more = [bytes(16 << 20) for _ in range(50)]  # whoever says what happened has room
    print(found, "|", found.limit, found.setting, 64 << 20 > found.bytes > 32 << 20)
"""


def leaking(device: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", LEAK.format(device=device)], capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="no other kernel counts mappings as data")
def test_an_allocation_beyond_the_limit_fails_where_it_is_made() -> None:
    said = leaking("cpu")
    assert "rank 3 on host h wanted more memory than its 0.06 GiB" in said
    assert "MemoryError" in said
    assert "raise the setting" in said
    assert said.endswith(f"| {64 << 20} the setting True\n")


@pytest.mark.slow
def test_ranks_with_a_gpu_set_no_limit() -> None:
    assert leaking("cuda") == "no limit\n"


def _caused_by(cause: BaseException) -> RuntimeError:
    error = RuntimeError("the loader failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (_caused_by(MemoryError("Unable to allocate 7.45 GiB")), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(2, "No such file or directory"), False),
        (ValueError("std::bad_alloc"), False),
    ],
)
def test_which_exceptions_are_about_memory(error: BaseException, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit.exceeded(error) is None, "a process without a limit exceeds none"
    monkeypatch.setattr(limit, "_current", LIMIT)
    found: Any = limit.exceeded(error)
    assert (found is not None) == is_one
    if found is not None:
        assert isinstance(found, MemoryBudgetError)
        assert (found.limit, found.setting) == (LIMIT.bytes, LIMIT.setting)


def test_an_error_of_tables_is_handed_on_as_it_is() -> None:
    own = MemoryBudgetError("no room", table="user", rows=3, bytes=9)
    assert limit.exceeded(own) is own
    assert limit.exceeded(_caused_by(own)) is own
