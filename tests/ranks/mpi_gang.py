"""Real MPI ranks on this machine: processes that mpirun starts, over shared memory."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun on PATH: MPI is optional")


@dataclass(frozen=True)
class RankOutcome:
    """How a rank ended: `value` or `error` ("Type: message"), and everything it printed."""

    value: Any
    error: str | None
    output: str


def run_mpi_ranks(
    function: Callable[..., Any], size: int, folder: Path, *, timeout_s: float = 90, **arguments: Any
) -> tuple[list[RankOutcome], int]:
    """Call a module-level function with JSON-able arguments in `size` ranks; (outcomes by rank, mpirun's exit status).

    Raises:
        TimeoutError: mpirun did not end in time; the message has its output. No process is left either way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = json.dumps({"module": function.__module__, "function": function.__name__, "arguments": arguments})
    # Nothing listens anywhere but on the loopback device; and containers may not read each other's memory (CMA).
    settings = {"oob_tcp_if_include": "lo", "btl": "vader,self", "btl_vader_single_copy_mechanism": "none"}
    network = [word for name, value in settings.items() for word in ("--mca", name, value)]
    command = ["mpirun", "-n", str(size), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", *network]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = folder / "mpirun.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, sys.executable, "-m", "tests.ranks.mpi_gang", str(folder), job],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"mpirun did not end within {timeout_s} s:\n{log.read_text()}") from None
    finally:
        if process.poll() is None:
            # mpirun waits for ranks that do not hear SIGTERM, and the ranks are in process groups of their own.
            for running in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    running.kill()
            process.wait()
    return [outcome_of(folder, rank, log) for rank in range(size)], status


def outcome_of(folder: Path, rank: int, log: Path) -> RankOutcome:
    """What a rank has left in `folder`."""
    output = log.read_text()
    result = folder / f"rank-{rank}.json"
    if not result.exists():
        return RankOutcome(None, "no result", output)
    return RankOutcome(**json.loads(result.read_text()), output=output)


def main(folder: Path, job: str) -> None:
    called = json.loads(job)
    function = getattr(importlib.import_module(called["module"]), called["function"])
    result: dict[str, Any] = {"value": None, "error": None}
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    try:
        result["value"] = function(**called["arguments"])
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        (folder / f"rank-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
