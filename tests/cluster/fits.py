"""The fit that all clusters of these tests train, and its driver's process there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvdspark.store import Store
from tests.chaos.counted import RECORD, steps_file, write_rows
from tests.chaos.drawn import Fit
from tests.chaos.session_attempt import SessionPlan
from tests.cluster.standalone import kill_tree

ROOT = Path(__file__).resolve().parents[2]
FIT = Fit(
    size=2,
    model="sharded",
    optimizer="adam",
    accumulation=1,
    random_layers=False,
    steps=20,
    batch_size=16,
    epochs=3,
    groups=4,
    shuffle=False,
    validation=False,
    interval_steps=None,
    seed=5,
)


@dataclass
class Running:
    """A driver's process, see `session_attempt`.

    Attributes:
        folder: of its files.
    """

    process: subprocess.Popen[bytes]
    folder: Path

    def steps(self, generation: int) -> int:
        """Global batches that rank 0 of a generation has trained."""
        path = self.folder / steps_file(generation, 0)
        return path.stat().st_size // RECORD.size if path.exists() else 0

    def wait_for_steps(self, generation: int, count: int, wait_s: float = 60.0) -> None:
        """Raises TimeoutError, or RuntimeError where the process ends before."""
        deadline_s = time.monotonic() + wait_s
        while self.steps(generation) < count:
            if self.process.poll() is not None:
                raise RuntimeError(f"the driver ended with {self.process.returncode}:\n{self.output()[-3000:]}")
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"generation {generation} has {self.steps(generation)} steps\n{self.output()[-3000:]}"
                )
            time.sleep(0.02)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Events of the fit so far of one kind."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for_events(self, kind: str, count: int, wait_s: float) -> list[dict[str, Any]]:
        """The first `count` events of a kind. Raises TimeoutError."""
        deadline_s = time.monotonic() + wait_s
        while len(found := self.events(kind)) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{len(found)} {kind} after {wait_s:g} s\n{self.output()[-3000:]}")
            time.sleep(0.05)
        return found[:count]

    def timeline(self, since_s: float) -> str:
        """What became of the fit since a moment of the monotonic clock, with seconds."""
        told = [
            (lost["at"], f"rank {lost.get('rank')} of {lost['host']} is lost ({lost['kind']}): {lost['cause']}")
            for lost in self.events("RankLost")
        ]
        for event in self.events("generation"):
            name = f"generation {event['generation']}"
            told.append((event["at"], f"{name} has {event['world_size']} ranks"))
            if self.steps(event["generation"]):
                record = (self.folder / steps_file(event["generation"], 0)).read_bytes()[: RECORD.size]
                told.append((RECORD.unpack(record)[0], f"{name} has done its first step"))
        return "\n".join(f"{at_s - since_s:7.1f} s  {what}" for at_s, what in sorted(told) if at_s >= since_s)

    def result(self, wait_s: float) -> dict[str, Any]:
        """{"ok": ..., "error": ...}. Raises TimeoutExpired."""
        self.process.wait(timeout=wait_s)
        path = self.folder / "result.json"
        assert path.exists(), self.output()[-5000:]
        said: dict[str, Any] = json.loads(path.read_text())
        return said

    def weights(self) -> dict[str, Tensor]:
        """Of the fitted model."""
        loaded: dict[str, Tensor] = torch.load(self.folder / "weights.pt", weights_only=True)
        return loaded

    def output(self) -> str:
        return (self.folder / "output").read_text(errors="replace")

    def end(self) -> None:
        kill_tree(self.process.pid)
        self.process.wait(timeout=30)


def begin(
    folder: Path,
    shared: Path,
    settings: Mapping[str, str],
    home: Path,
    *,
    prefix: Sequence[str] = (),
    fit: Fit = FIT,
    pause_s: float = 0.02,
    **params: Any,
) -> Running:
    """Start a driver that trains `fit` in a session of these settings.

    Args:
        folder: of this process's files; made here.
        shared: of rows and store, for all hosts.
        home: SPARK_HOME.
        prefix: what the command line begins with.
        params: of the estimator.
    """
    store = Store((shared / "store").as_uri())
    if not store.exists("datasets/d"):
        write_rows(store, fit)
    address = settings.get("spark.driver.host", "127.0.0.1")
    settings = {"spark.driver.host": address, "spark.driver.bindAddress": address, **settings}
    rows = str(shared / "store/datasets/d/train")
    SessionPlan(fit, store.uri, rows, settings, dict(params), pause_s).write(folder)
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": address,
        "PYTHONPATH": str(ROOT),
        "PYSPARK_PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.chaos.session_attempt", str(folder)],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    return Running(process, folder)


def on_cluster(url: str, address: str = "127.0.0.1") -> dict[str, str]:
    """Settings of a session with one executor of one slot on each of two workers."""
    return {
        "spark.master": url,
        "spark.driver.host": address,
        "spark.cores.max": "2",
        "spark.executor.cores": "1",
        "spark.executor.memory": "1g",
    }
