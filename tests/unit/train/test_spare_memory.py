from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvdspark.rank_limit import RankLimit
from hvdspark.train.spare_memory import spare_bytes

MIB = 1 << 20


@pytest.fixture
def kernel(tmp_path: Path) -> dict[str, str]:
    """A host with 1000 MiB to spare, and a process that has 300 MiB."""
    meminfo, statm = tmp_path / "meminfo", tmp_path / "statm"
    meminfo.write_text(f"MemTotal: {4000 * 1024} kB\nMemAvailable: {1000 * 1024} kB\n")
    statm.write_text(f"1000000 {300 * MIB // os.sysconf('SC_PAGE_SIZE')} 10 1 0 5 0\n")
    return {"meminfo": str(meminfo), "statm": str(statm)}


def test_half_of_what_the_host_has(kernel: dict[str, str]) -> None:
    assert spare_bytes({}, **kernel) == 500 * MIB


@pytest.mark.parametrize(("limit", "spare"), [(700, 200), (300, 0), (100, 0), (9000, 500)])
def test_half_of_what_the_ranks_limit_leaves(kernel: dict[str, str], limit: int, spare: int) -> None:
    assert spare_bytes(RankLimit(limit * MIB, 0, "").environment(), **kernel) == spare * MIB


def test_none_where_nobody_can_say(kernel: dict[str, str]) -> None:
    assert spare_bytes({}, **{**kernel, "meminfo": "/nowhere"}) == 0


def test_this_host_can_say() -> None:
    assert spare_bytes({}) > 0
