"""Where the seconds of a small fit go: 10,000 rows, 1 epoch, 2 ranks, in a warm session.

    python benchmarks/fit_overhead.py [--repeats 5]

The first fit warms the session up and is not counted. Every fit gets a new plan, so that nothing is reused. The phases
are the times between events that a listener of the fit hears.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import nn

import hvdspark
from hvdspark.estimators import TorchEstimator
from hvdspark.events import DatasetReady, FitEnded, FitEvent, FitListener, FitStarted, PhaseStarted

# What a rank imports between launch and training; `torch._dynamo` only where something is compiled.
IMPORTED = ("hvdspark.train.on_rank", "hvdspark.data.readers.petastorm", "torch._dynamo")


class Stopwatch(FitListener):
    """Adds the seconds of each phase of a fit to the lists of `phases`.

    Attributes:
        phases: what happened, and how long it took in each fit.
    """

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = defaultdict(list)
        self._last = 0.0

    def begin(self) -> None:
        """A fit is about to be called."""
        self._last = time.perf_counter()

    def on_event(self, event: FitEvent) -> None:
        match event:
            case FitStarted():
                self._lap("checks")
            case DatasetReady():
                self._lap("materialise")
            case PhaseStarted(phase="launch"):
                self._lap("the first rows, on the driver")
            case FitEnded():
                self._lap("launch, train, collect")

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.phases[name].append(now - self._last)
        self._last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    watch = Stopwatch()
    phases = watch.phases
    with tempfile.TemporaryDirectory(prefix="hvdspark-bench-") as scratch:
        for number in range(arguments.repeats + 1):
            numbers = F.array(*[F.rand(100 * number + k).cast("float") for k in range(13)])
            rows = spark.range(0, arguments.rows, 1, 2).select(numbers.alias("x"), (F.col("id") % 2).alias("y"))
            estimator = TorchEstimator(
                model=nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 1)),
                loss="bce_with_logits",
                featureCols=["x"],
                labelCol="y",
                batchSize=1024,
                storeUri=f"file://{scratch}",
                listeners=[watch],
            )
            started = time.perf_counter()
            watch.begin()
            model = estimator.fit(rows)
            phases["fit"].append(time.perf_counter() - started)
            phases["  of it: training loop"].append(sum(model.summary.seconds.values()))
            started = time.perf_counter()
            (imports, *_) = hvdspark.run(import_what_training_needs, num_workers=2, spark=spark)
            phases["a launch without training"].append(time.perf_counter() - started - sum(imports.values()))
            for name, seconds in imports.items():
                phases[f"imports on a rank: {name}"].append(seconds)
    for name, seconds in phases.items():
        print(
            f"{name:50} {statistics.median(seconds[1:]):6.2f} s   (all: {', '.join(f'{s:.2f}' for s in seconds[1:])})"
        )
    spark.stop()


def import_what_training_needs() -> dict[str, float]:
    """Seconds that a rank spends on imports between launch and training."""
    seconds = {}
    for name in IMPORTED:
        started = time.perf_counter()
        importlib.import_module(name)
        seconds[name] = time.perf_counter() - started
    return seconds


if __name__ == "__main__":
    main()
