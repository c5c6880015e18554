"""The driver's process of a fit with Spark, which may be killed and made again: a session, and `TorchEstimator.fit`.

    python -m tests.chaos.session_attempt FOLDER

Its folder has the same files as that of attempt.py, and the weights of the fitted model in weights.pt.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hvdspark.store import Store
from tests.chaos.counted import Watched, counted_loss, program_of
from tests.chaos.drawn import Fit
from tests.chaos.verdict import weights_in

SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.memory": "1g",
    # A barrier job would fail at once without its executors, and try again only 15 s later.
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.scheduler.maxRegisteredResourcesWaitingTime": "60s",
}

_AS_OF_RANKS = {"GenerationStarted": "generation", "CheckpointCommitted": "checkpoint"}


@dataclass(frozen=True)
class SessionPlan:
    """What the process is told.

    Attributes:
        rows: directory of the fit's Parquet files (`counted.write_rows`).
        settings: of the session, with its master.
        params: of the estimator, beside what the fit says.
        pause_s: after each step.
    """

    fit: Fit
    store_uri: str
    rows: str
    settings: dict[str, str]
    params: dict[str, Any] = field(default_factory=dict)
    pause_s: float = 0.02

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> SessionPlan:
        plain = json.loads((folder / "plan.json").read_text())
        return SessionPlan(fit=Fit(**plain.pop("fit")), **plain)


def main(folder: Path) -> None:
    """Body of the process."""
    from pyspark.sql import SparkSession

    plan = SessionPlan.read(folder)
    builder = SparkSession.builder.appName("hvdspark chaos").config(map={**SETTINGS, **plan.settings})
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    result: dict[str, Any] = {"ok": True, "error": ""}
    try:
        _fit(spark, plan, folder)
    except Exception as error:
        result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    (folder / "result.part").write_text(json.dumps(result))
    (folder / "result.part").rename(folder / "result.json")
    spark.stop()


def _fit(spark: Any, plan: SessionPlan, folder: Path) -> None:
    from hvdspark.estimators import TorchEstimator
    from hvdspark.events import FitEvent, FitListener

    fit, told = plan.fit, os.open(folder / "events.jsonl", os.O_WRONLY | os.O_CREAT, 0o600)

    class Listener(FitListener):
        def on_event(self, event: FitEvent) -> None:
            kind = _AS_OF_RANKS.get(type(event).__name__, type(event).__name__)
            plain = {name: value for name, value in vars(event).items() if isinstance(value, str | int | float)}
            os.write(told, json.dumps({"at": time.monotonic(), "event": kind, **plain}).encode() + b"\n")

    watched = Watched(str(folder), plan.pause_s)
    program = program_of(fit, watched)
    estimator = TorchEstimator(
        model=program.module,
        loss=counted_loss,
        optimizer=program.optimizer,
        callbacks=[watched],
        listeners=[Listener()],
        featureCols=["dense", "id"],
        labelCol="label",
        batchSize=fit.batch_size,
        epochs=fit.epochs,
        seed=fit.seed,
        shuffle=fit.shuffle,
        gradientAccumulationSteps=fit.accumulation,
        precision="float32",
        monitor="train_loss",
        numWorkers=fit.size,
        storeUri=plan.store_uri,
        **plan.params,
    )
    model = estimator.fit(spark.read.parquet(plan.rows))
    store, _, directory = model.uri.partition("/runs/")
    weights = weights_in(fit, Store(store), f"runs/{directory}")
    torch.save(weights, folder / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
