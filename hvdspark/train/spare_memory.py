"""Memory that this process may take for a while, for copies that are not needed if there is none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hvdspark.rank_limit import RankLimit

_SHARE = 2  # of what is left, one in so many


def spare_bytes(
    environment: Mapping[str, str] = os.environ, meminfo: str = "/proc/meminfo", statm: str = "/proc/self/statm"
) -> int:
    """Half of what the limit of this rank and its host leave. 0 where nobody can say.

    Args:
        environment: where the limit is said.
        meminfo, statm: what the kernel says of the host and of this process.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path(meminfo).read_text().splitlines() if ":" in line)
        left = [1024 * int(lines["MemAvailable"].split()[0])]
        limit = RankLimit.of(environment)
        if limit is not None:
            resident = int(Path(statm).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            left.append(limit.bytes - resident)
    except (OSError, KeyError, ValueError, IndexError):
        return 0
    return max(0, min(left)) // _SHARE
