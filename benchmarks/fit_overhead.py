"""Where the seconds of a small fit go: 10,000 rows, 1 epoch, 2 ranks, in a warm session.

    python benchmarks/fit_overhead.py [--repeats 5]

The first fit warms the session up and is not counted. Every fit gets a new plan, so that nothing is reused.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import nn

import hvdspark.estimators.fit as fit_module
from hvdspark import launch
from hvdspark.estimators import TorchEstimator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    phases: dict[str, list[float]] = defaultdict(list)
    unmeasured_run = launch.run
    measure_phases(phases)
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
            )
            started = time.perf_counter()
            model = estimator.fit(rows)
            phases["fit"].append(time.perf_counter() - started)
            phases["  of it: training loop"].append(sum(model.summary.seconds.values()))
            started = time.perf_counter()
            (imports, *_) = unmeasured_run(import_what_training_needs, num_workers=2, spark=spark)
            phases["a launch without training"].append(time.perf_counter() - started - sum(imports.values()))
            for name, seconds in imports.items():
                phases[f"imports on a rank: {name}"].append(seconds)
    for name, seconds in phases.items():
        print(
            f"{name:32} {statistics.median(seconds[1:]):6.2f} s   (all: {', '.join(f'{s:.2f}' for s in seconds[1:])})"
        )
    spark.stop()


def import_what_training_needs() -> dict[str, float]:
    """Seconds that a rank spends on imports between launch and training."""
    seconds = {}
    for name in ("hvdspark.train.on_rank", "torch._dynamo"):  # the latter only where something is compiled
        started = time.perf_counter()
        importlib.import_module(name)
        seconds[name] = time.perf_counter() - started
    return seconds


def measure_phases(phases: dict[str, list[float]]) -> None:
    """Put a stop-watch around the two calls that a fit consists of."""
    real_materialize, real_run = fit_module.materialize, launch.run

    @contextlib.contextmanager
    def materialize(*positional: Any, **named: Any) -> Iterator[Any]:
        started = time.perf_counter()
        with real_materialize(*positional, **named) as dataset:
            phases["materialise"].append(time.perf_counter() - started)
            yield dataset

    def run(*positional: Any, **named: Any) -> Any:
        started = time.perf_counter()
        results = real_run(*positional, **named)
        phases["launch, train, collect"].append(time.perf_counter() - started)
        return results

    fit_module.materialize, launch.run = materialize, run


if __name__ == "__main__":
    main()
