"""Real Horovod ranks on this machine, without Spark: one process each, Gloo over the loopback device."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousServer

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class RankOutcome:
    """How a rank ended: `value` or `error` ("Type: message"), and everything it printed."""

    value: Any
    error: str | None
    output: str


def run_ranks(
    function: Callable[..., Any],
    size: int,
    folder: Path,
    *,
    timeout_s: float = 90,
    variables: Mapping[str, str] | None = None,
    **arguments: Any,
) -> list[RankOutcome]:
    """Call a module-level function with JSON-able arguments in `size` ranks; outcomes by rank.

    Args:
        folder: for what the ranks print and return.
        variables: environment variables beside Horovod's own.

    Raises:
        TimeoutError: some rank did not end in time; the message has its output. No process is left either way.
    """
    server = RendezvousServer()
    port = server.start()
    slots = get_host_assignments(parse_hosts(f"127.0.0.1:{size}"), size, size)
    server.init(slots)
    folder.mkdir(parents=True, exist_ok=True)
    job = json.dumps({"module": function.__module__, "function": function.__name__, "arguments": arguments})
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for slot in slots:
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("HOROVOD_")},
                "HOROVOD_CONTROLLER": "gloo",
                "HOROVOD_CPU_OPERATIONS": "gloo",
                "HOROVOD_GLOO_IFACE": "lo",
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": "127.0.0.1",
                "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
                "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
                "HOROVOD_HOSTNAME": "127.0.0.1",
                "HOROVOD_RANK": str(slot.rank),
                "HOROVOD_SIZE": str(size),
                "HOROVOD_LOCAL_RANK": str(slot.local_rank),
                "HOROVOD_LOCAL_SIZE": str(size),
                "HOROVOD_CROSS_RANK": "0",
                "HOROVOD_CROSS_SIZE": "1",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                **(variables or {}),
            }
            with (folder / f"rank-{slot.rank}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tests.ranks.gang", str(folder), job],
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        deadline = time.monotonic() + timeout_s
        for rank, process in enumerate(processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                text = (folder / f"rank-{rank}.log").read_text()
                raise TimeoutError(f"rank {rank} did not end within {timeout_s} s:\n{text}") from None
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        server.stop()
        server._httpd.server_close()
    return [outcome_of(folder, rank, folder / f"rank-{rank}.log") for rank in range(size)]


def outcome_of(folder: Path, rank: int, log: Path) -> RankOutcome:
    """What a rank has left in `folder`."""
    output = log.read_text()
    result = folder / f"rank-{rank}.json"
    if not result.exists():
        return RankOutcome(None, "no result", output)
    return RankOutcome(**json.loads(result.read_text()), output=output)


def main(folder: Path, job: str) -> None:
    gc.disable()  # as in a rank of Spark's: there is no garbage among what is imported
    import horovod.torch as hvd

    hvd.init()
    called = json.loads(job)
    result: dict[str, Any] = {"value": None, "error": None}
    try:
        function = getattr(importlib.import_module(called["module"]), called["function"])
        gc.freeze()
        gc.enable()
        result["value"] = function(**called["arguments"])
    except Exception as error:
        traceback.print_exc()
        result["error"] = f"{type(error).__name__}: {error}"
    (folder / f"rank-{hvd.rank()}.json").write_text(json.dumps(result))
    if result["error"] is None:
        hvd.shutdown()
    sys.exit(0 if result["error"] is None else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
