"""Where the time of a DLRM step goes: embeddings, their exchange and the dense layers, for 1 and 2 ranks.

    python benchmarks/dlrm.py [--rows 8192] [--steps 40] [--ranks 1 2] [--ids skewed uniform]
        [--tables bounded hashed] [--placement auto] [--prefetch no]

DLRM with a bottom MLP 512-256-16 and a top MLP 512-512-256-1, dense layers in bfloat16 where the CPU has it, trained
by Adam; 26 tables with the cardinalities of the Criteo Kaggle data, cut at 10^6 rows, 16 columns, rowwise Adagrad. One
thread a rank. Tables are bounded, or as `CTRClassifier` has them: unbounded, with ids hashed to 52 bits. Ids are skewed
as those of Criteo (examples/click_data.py) or, the worst case, uniform. Every row was met before the clock starts, so
no page is touched for the first time. One rank runs in this process without Horovod, more are started by
`hvdspark.run`.

Times of a phase are without the phases inside it. An exchange includes waiting for the slowest rank, but for its CPU
time. On a machine that has other work to do, look at the quietest tenth of the steps, and at CPU times.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hvdspark import launch
from hvdspark.collectives import current_collective
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig, module
from hvdspark.embedding.exchange import expand
from hvdspark.embedding.exchange import trained as exchange
from hvdspark.models import DLRM
from hvdspark.models.click import ID_BITS
from hvdspark.train.precision import resolve_precision

DIM = 16
NUMBERS = 13
MAX_ROWS = 10**6
CARDINALITIES = [
    *[1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194],
    *[27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572],
]
SIZES = [min(size, MAX_ROWS) for size in CARDINALITIES]
FEATURES = [f"C{number + 1}" for number in range(len(SIZES))]
DENSE = ("dense forward", "dense backward")
NOT_EMBEDDING = (*DENSE, "dense exchange", "dense optimizer")
REUSED_BATCHES = 8


class Clock:
    """Seconds of named phases in each step: (passed, of the CPU). A phase does not count the phases inside it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, NDArray[np.float64]]] = []
        self._open: list[NDArray[np.float64]] = []  # for each phase that runs, the seconds of those inside it

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._open.append(np.zeros(2))
        started = _now()
        try:
            yield
        finally:
            seconds = _now() - started
            inside = self._open.pop()
            if self._open:
                self._open[-1] += seconds
            if self.steps:
                self.steps[-1][name] += seconds - inside

    @contextmanager
    def step(self) -> Iterator[None]:
        self.steps.append(defaultdict(lambda: np.zeros(2)))
        started = _now()
        yield
        self.steps[-1]["step"] = _now() - started

    def watch(self, owner: Any, function: str, phase: Callable[..., str] | str) -> None:
        """Count the calls of owner.function as a phase."""
        real = getattr(owner, function)

        def timed(*positional: Any, **named: Any) -> Any:
            with self.phase(phase if isinstance(phase, str) else phase(*positional, **named)):
                return real(*positional, **named)

        setattr(owner, function, timed)

    def watch_async(self, owner: Any, function: str, phase: Callable[..., str]) -> None:
        """The same of a function that returns another one, which waits for the result."""
        real = getattr(owner, function)

        def begin(*positional: Any, **named: Any) -> Callable[[], Any]:
            name = phase(*positional, **named)
            with self.phase(name):
                wait = real(*positional, **named)

            def timed() -> Any:
                with self.phase(name):
                    return wait()

            return timed

        setattr(owner, function, begin)


def _now() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


def hashed(ids: Tensor) -> Tensor:
    """Other ids below 2**ID_BITS for the same rows: a bijection of 64 bits, whose upper ones are kept."""
    mixed = ids.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(64 - ID_BITS)).astype(np.int64))


def draw(kind: str, rows: int, seed: int, skew: Any, names: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Ids of one batch, [rows] for each feature."""
    random = np.random.default_rng(seed)
    batch = {}
    for feature, size, parameters in zip(FEATURES, SIZES, skew._SKEW, strict=True):
        if kind == "uniform":
            ids = random.integers(0, size, rows)
        else:
            # Popular ids are anywhere in the table.
            ids = (skew._popularity_rank(random.random(rows), *parameters) * 2654435761 + 12345) % size
        batch[feature] = names(torch.from_numpy(ids))
    return batch


def meet_every_row(
    embeddings: ShardedEmbeddingCollection, rank: int, world_size: int, names: Callable[[Tensor], Tensor]
) -> None:
    """Initialise all rows and touch all memory of them, by steps with zero gradients."""
    rows = 1 << 16
    for start in range(0, MAX_ROWS, rows * world_size):
        here = torch.arange(start + rank * rows, start + (rank + 1) * rows)
        outputs = embeddings({feature: names(here % size) for feature, size in zip(FEATURES, SIZES, strict=True)})
        (sum(output.sum() for output in outputs.values()) * 0).backward()
        embeddings.apply_gradients()


def _as_they_are(ids: Tensor) -> Tensor:
    return ids


def bandwidth() -> float:
    """Bytes/s of a copy, read and written."""
    source = np.ones(1 << 24, dtype=np.float32)
    target = source.copy()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def measure(
    kind: str, rows: int, steps: int, tables_are: str, placement: str, prefetch: str, examples: str
) -> dict[str, Any]:
    """Collective. Train; phases of each step on this rank, and what they worked on."""
    sys.path.insert(0, examples)
    skew = importlib.import_module("click_data")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    collective = current_collective()
    clock, counts = Clock(), defaultdict(list)
    names = hashed if tables_are == "hashed" else _as_they_are
    tables = [
        TableConfig(feature, DIM, None if tables_are == "hashed" else size, placement=placement)
        for feature, size in zip(FEATURES, SIZES, strict=True)
    ]
    embeddings = ShardedEmbeddingCollection(tables, dict(zip(FEATURES, FEATURES, strict=True)), collective=collective)
    meet_every_row(embeddings, collective.rank, collective.size, names)
    network = DLRM(NUMBERS, len(FEATURES), DIM, (512, 512, 256), bottom=(512, 256))
    parameters = {**dict(network.named_parameters()), **dict(embeddings.named_parameters())}
    optimizer = collective.distributed_optimizer(
        torch.optim.Adam(parameters.values(), 1e-3, fused=True), parameters.items()
    )
    precision = resolve_precision("auto", "cpu", collective)

    exchange_names = {"ids": "exchange of ids", "rows": "exchange of rows", "gradients": "exchange of gradients"}
    for watch, function in ((clock.watch, "alltoall"), (clock.watch_async, "alltoall_async")):
        watch(collective, function, lambda tensor, splits, name: exchange_names[name.rsplit("/")[-1]])
    for owner, function, phase in [
        (exchange, "unique", "dedup"),
        (exchange, "route", "routes to owners"),
        (exchange, "sum_equal", "sum at the owner"),
        (module, "stack", "expand"),
        (expand._Stack, "backward", "expand, backward"),
    ]:
        clock.watch(owner, function, phase)
    for shard in embeddings.shards:
        clock.watch(shard.key_space, "owners", "routes to owners")
        for function, phase in (("slots", "lookup"), ("gather", "lookup"), ("update", "sparse optimizer")):
            clock.watch(shard, function, phase)

    random = torch.Generator().manual_seed(collective.rank)
    batches = [
        (
            torch.randn(rows, NUMBERS, generator=random),
            draw(kind, rows, 1000 * collective.rank + number, skew, names),
            (torch.rand(rows, generator=random) < 0.25).float(),
        )
        for number in range(REUSED_BATCHES)
    ]

    def step(number: int) -> None:
        numbers, ids, labels = batches[number % len(batches)]
        with clock.phase("other of embeddings"):
            vectors = embeddings.stacked(ids)
            if prefetch != "no":
                embeddings.prefetch(batches[(number + 1) % len(batches)][1], stale_rows=prefetch == "stale rows")
        with clock.phase("dense forward"), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(numbers, vectors, numbers.new_zeros(rows, 0)).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        with clock.phase("dense backward"):
            (loss / (rows * collective.size)).backward()
        with clock.phase("dense exchange"):
            optimizer.synchronize()
        with clock.phase("dense optimizer"):
            optimizer.step()
            optimizer.optimizer.zero_grad()
        with clock.phase("other of embeddings"):
            lookups = embeddings._pending.passes[-1]
            embeddings.apply_gradients()
        counts["distinct"].append(sum(len(lookup.distinct.keys) for lookup in lookups))
        counts["asked"].append(sum(len(lookup.asked.inverse) for lookup in lookups))
        counts["owned"].append(sum(len(lookup.asked.keys) for lookup in lookups))

    for number in range(len(batches)):  # warms allocators up, and Horovod's memory of names and shapes
        step(number)
    counts.clear()
    for number in range(steps):
        with clock.step():
            step(number)
    return {
        "steps": [dict(phases) for phases in clock.steps],
        "counts": {name: statistics.mean(values) for name, values in counts.items()},
        "bandwidth": bandwidth(),
        "precision": precision,
    }


def report(results: list[dict[str, Any]], setting: str, rows: int) -> None:
    """Print what the ranks measured, over the steps of all ranks."""
    steps = [phases for result in results for phases in result["steps"]]
    phases = {name: np.array([step.get(name, (0.0, 0.0)) for step in steps]) for name in steps[-1]}
    whole = phases.pop("step")
    sparse = sum(seconds for name, seconds in phases.items() if name not in NOT_EMBEDDING)
    share = 1 - sum(phases[name] for name in DENSE) / whole
    lookups = rows * len(FEATURES)
    counts = results[0]["counts"]
    print(
        f"\n{len(results)} rank{'s' * (len(results) > 1)}, {setting}, {rows} rows a rank, dense layers in "
        f"{results[0]['precision']}"
    )
    print(
        f"  {lookups} lookups a rank, in sharded tables {counts['distinct']:.0f} distinct keys; "
        f"asked for {counts['asked']:.0f}, {counts['owned']:.0f} of them distinct"
    )
    print(f"  {'ms a step':24} {'passed':>9} {'quiet':>9} {'CPU':>9}")
    for name, seconds in [*sorted(phases.items(), key=lambda item: -_typical(item[1])[0]), ("step", whole)]:
        print(f"  {name:24} " + " ".join(f"{value * 1e3:9.2f}" for value in _typical(seconds)))
    print(f"  {'not dense fwd, bwd':24} " + " ".join(f"{value:9.1%}" for value in _typical(share)) + "   goal: 25 %")
    rates = " ".join(f"{lookups / value / 1e6:9.2f}" for value in _typical(sparse))
    print(f"  {'M lookups/s a rank':24} {rates}   goal: 6, of the embeddings alone")
    print(
        f"  {'rows/s of all ranks':24} " + " ".join(f"{len(results) * rows / value:9,.0f}" for value in _typical(whole))
    )
    passed = _typical(sparse)[0]
    # Each id read; each owned row, its accumulator and last step read and written; each row there and back; vectors
    # written and their gradients read.
    row = 4 * DIM
    wire = counts["distinct"] * (8 + 2 * row) * (len(results) - 1) / len(results)
    moved = lookups * (8 + 2 * row) + counts["owned"] * 2 * (row + 8) + 2 * counts["distinct"] * 2 * row + 2 * wire
    floor = moved / results[0]["bandwidth"]
    print(
        f"  floor: {moved / 1e6:.1f} MB at {results[0]['bandwidth'] / 1e9:.1f} GB/s (copy) = {floor * 1e3:.2f} ms; "
        f"{passed / floor:.1f} times that passed, {moved / passed / 1e9:.2f} GB/s"
    )


def _typical(seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of [steps, 2]: median and 10th percentile of the time passed, median of CPU time."""
    return float(np.median(seconds[:, 0])), float(np.quantile(seconds[:, 0], 0.1)), float(np.median(seconds[:, 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of each rank's batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ids", nargs="+", choices=["skewed", "uniform"], default=["skewed", "uniform"])
    parser.add_argument("--tables", nargs="+", choices=["bounded", "hashed"], default=["bounded", "hashed"])
    parser.add_argument("--placement", choices=["auto", "row"], default="auto", help="of all tables")
    parser.add_argument("--prefetch", choices=["no", "ids", "stale rows"], default="no", help="of the next batch")
    arguments = parser.parse_args()
    examples = str(Path(__file__).resolve().parent.parent / "examples")
    for ranks in arguments.ranks:
        for kind, tables in itertools.product(arguments.ids, arguments.tables):
            given = (kind, arguments.rows, arguments.steps, tables, arguments.placement, arguments.prefetch, examples)
            results = [measure(*given)] if ranks == 1 else on_ranks(ranks, given)
            setting = f"{kind} ids, {tables} tables, placement {arguments.placement}, prefetch {arguments.prefetch}"
            report(results, setting, arguments.rows)


def on_ranks(ranks: int, given: tuple[Any, ...]) -> list[dict[str, Any]]:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(f"local[{ranks}]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return launch.run(measure, given, num_workers=ranks, spark=spark)


if __name__ == "__main__":
    main()
