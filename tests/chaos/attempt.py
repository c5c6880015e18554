"""The driver's process of a run, which may be killed and made again: what `fit` does between data and model.

The run has a name, by which the next driver goes on with it.

What it is told and what it says are files of its folder:

    plan.json      which fit, which store, which run
    events.jsonl   what ranks and the launcher report, each with the time (CLOCK_MONOTONIC, s)
    steps-G-R      what rank R of generation G has trained, see `counted.Watched`
    result.json    {"ok": ..., "error": ...}, when it is over
    output         of all its processes
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hvdspark.data.dataset.selection import Selection
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from hvdspark.specs import TrainSpec, from_json
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback
from hvdspark.train.driver import send
from hvdspark.train.keeping import named
from hvdspark.train.on_rank import train_on_rank
from hvdspark.train.pickling import pack
from hvdspark.train.program import TrainResult
from hvdspark.train.run_record import record_of
from tests.chaos.counted import Watched, program_of
from tests.chaos.drawn import Fit
from tests.chaos.weak_store import WeakStore

_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_STALL_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What the process is told.

    Attributes:
        spec: JSON of the `TrainSpec`.
        max_restarts: of the supervisor.
        pause_s: after each step.
    """

    fit: Fit
    spec: str
    max_restarts: int
    pause_s: float

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Plan:
        plain = json.loads((folder / "plan.json").read_text())
        return Plan(fit=Fit(**plain.pop("fit")), **plain)


def main(folder: Path, *more: Callback) -> None:
    """Body of the process. Ranks have these callbacks, too."""
    plan = Plan.read(folder)
    events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_CREAT, 0o600)

    def told(event: dict[str, Any]) -> None:
        os.write(events, json.dumps({"at": time.monotonic(), **event}, default=str).encode() + b"\n")

    result: dict[str, Any] = {"ok": True, "error": ""}
    try:
        _train(plan, folder, more, told)
    except Exception as error:
        result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    (folder / "result.part").write_text(json.dumps(result))
    (folder / "result.part").rename(folder / "result.json")


def _train(plan: Plan, folder: Path, more: Sequence[Callback], told: Callable[[dict[str, Any]], None]) -> None:
    """As `train.driver.train_on_ranks`, without Spark."""
    spec = from_json(TrainSpec, plan.spec)
    store = Store(spec.store_uri)
    program = program_of(plan.fit, Watched(str(folder), plan.pause_s), WeakStore(str(folder)), *more)
    with named(store, spec.run_id, on_lost=lambda why: os._exit(1)) as keeping:
        keeping.begin(record_of(spec, program, Selection(columns=())))
        if keeping.result is not None:
            return

        def take_in(event: dict[str, Any]) -> None:
            told(event)
            if event["event"] == "generation":
                keeping.launched(event["generation"])

        results = supervise(
            SameHostLauncher(),
            train_on_rank,
            (plan.spec, send(store, spec.run_id, pack(program), again=keeping.before is not None)),
            num_workers=plan.fit.size,
            store_uri=spec.store_uri,
            env=_ENVIRONMENT,
            max_restarts=plan.max_restarts,
            stall_timeout_s=_STALL_S,
            on_event=take_in,
            first_generation=keeping.generation,
        )
        keeping.finished(from_json(TrainResult, results[0]))
