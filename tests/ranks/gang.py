"""Real Horovod ranks on this machine, without Spark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise


def run_ranks(function: Callable[..., Any], size: int, **arguments: Any) -> list[Any]:
    """What `function` returns in `size` ranks of one thread each; by rank. Raises what `hvdspark.run` raises."""
    env = {"OMP_NUM_THREADS": "1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "30"}
    return supervise(SameHostLauncher(), function, (), arguments, size, env=env)
