"""A driver with a Spark session whose fit has a name: it dies in the middle of it, or ends it and fits the same anew.

    python -m tests.chaos.driver_fit FOLDER torch|ctr die|finish

Both drivers share the store in the folder. What else is there:

    die.jsonl, finish.jsonl      events of the fit with the name, as a driver has heard of them
    history.json                 of the model of that fit
    weights.pt                   {"named": its weights, "alone": those of the fit that nobody has disturbed}
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

from hvdspark.estimators import CTRClassifier
from hvdspark.events import CheckpointCommitted, FitEvent, FitListener, StepsDone
from hvdspark.store import Store
from tests.chaos.session_attempt import SETTINGS
from tests.spark.session_fits import clicks
from tests.spark.toys import linear, separable

RUN_ID = "nightly"
TORCH, CTR = "torch", "ctr"
DIE, FINISH = "die", "finish"
EPOCHS = 3
_CLUSTER = {
    "spark.master": "local-cluster[2,1,1024]",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


class Told(FitListener):
    """Writes events down."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def on_event(self, event: FitEvent) -> None:
        said = {"event": type(event).__name__, **vars(event)}
        os.write(self._file, json.dumps(said, default=str).encode() + b"\n")


class Dies(FitListener):
    """Ends this process with -9 in the second epoch, behind a checkpoint in the middle of it."""

    def __init__(self) -> None:
        self._has_one = False

    def on_checkpoint_committed(self, event: CheckpointCommitted) -> None:
        self._has_one |= event.epoch == 1 and "-step-" in event.path

    def on_steps_done(self, event: StepsDone) -> None:
        if self._has_one and event.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def fit(which: str, spark: SparkSession, store: Store, **params: Any) -> Any:
    """The model. Steps of milliseconds, many of them: nothing has to slow the fit down so that it can be hit."""
    params |= {"storeUri": store.uri, "epochs": EPOCHS, "numWorkers": 2, "seed": 7}
    if which == TORCH:
        return linear(optimizer="adam", batchSize=2, **params).fit(separable(spark, 1200))
    columns = {"continuousCols": ["price"], "categoricalCols": ["item", "user"], "labelCol": "clicked"}
    shape = {"architecture": "deepfm", "embeddingDim": 4, "hiddenUnits": [8], "dropout": 0.1, "batchSize": 4}
    return CTRClassifier(**columns, **shape, precision="float32", **params).fit(_clicks(spark))


def weights_of(which: str, model: Any, spark: SparkSession) -> dict[str, Tensor]:
    """Of a fitted model, with a vector for each category that there is."""
    weights = dict(model.module().state_dict())
    if which == CTR:
        for column in ("item", "user"):
            values = sorted(row[0] for row in _clicks(spark).select(column).distinct().collect())
            weights[column] = torch.from_numpy(model.vectors(column, values))
    return weights


def _clicks(spark: SparkSession) -> DataFrame:
    return clicks(spark).select("price", "item", "user", "clicked")


def main(folder: Path, which: str, how: str) -> None:
    """Body of the process."""
    settings = {**SETTINGS, **_CLUSTER, "spark.local.dir": str(folder / "local")}
    spark = SparkSession.builder.appName(f"hvdspark chaos {how}").config(map=settings).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    store, listeners = Store((folder / "store").as_uri()), [Told(folder / f"{how}.jsonl"), *([Dies()] * (how == DIE))]
    named = fit(which, spark, store, runId=RUN_ID, checkpointIntervalSteps=50, listeners=listeners)
    alone = fit(which, spark, store)
    (folder / "history.json").write_text(json.dumps(named.summary.history))
    torch.save(
        {"named": weights_of(which, named, spark), "alone": weights_of(which, alone, spark)}, folder / "weights.pt"
    )
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
