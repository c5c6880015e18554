"""What the benchmarks of steps share: a clock of phases, ids as skewed as Criteo's, ranks, and the floor of the bytes.

Knows nothing of hvdspark but its public names, so that the benchmarks also run against an older checkout.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import hvdspark

DIM = 16
MAX_ROWS = 10**6
CARDINALITIES = [
    *[1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194],
    *[27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572],
]
FEATURES = [f"C{number + 1}" for number in range(len(CARDINALITIES))]
# Of one step, in its order; `hvdspark.embedding.phases` has the same names.
PHASES = (
    "distinct",
    "exchange ids",
    "find rows",
    "exchange rows",
    "expand",
    "backward",
    "exchange gradients",
    "update",
)
ID_BITS = 52  # of the ids that CTRClassifier hashes categories to


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

    def listening(self) -> Any:
        """A context in which the phases inside hvdspark.embedding are timed; nothing in a checkout without phases."""
        try:
            phases = importlib.import_module("hvdspark.embedding.phases")
        except ImportError:
            return nullcontext()
        return phases.timed_by(self.phase)


def _now() -> NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


def hashed(ids: Tensor) -> Tensor:
    """Other ids below 2**ID_BITS for the same rows: a bijection of 64 bits, whose upper ones are kept."""
    mixed = ids.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return torch.from_numpy((mixed >> np.uint64(64 - ID_BITS)).astype(np.int64))


def as_they_are(ids: Tensor) -> Tensor:
    return ids


def draw(
    kind: str, rows: int, seed: int, sizes: Sequence[int], examples: str, names: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Ids of one batch: int64 [rows] for each of FEATURES.

    Args:
        kind: "skewed" as those of Criteo (examples/click_data.py), or "uniform", the worst case.
        sizes: ids of each feature are in [0, size) before `names` changes them.
    """
    if examples not in sys.path:
        sys.path.insert(0, examples)
    skew = importlib.import_module("click_data")
    random = np.random.default_rng(seed)
    batch = {}
    for feature, size, parameters in zip(FEATURES, sizes, skew._SKEW, strict=True):
        if kind == "uniform":
            ids = random.integers(0, size, rows)
        else:
            # Popular ids are anywhere in the table.
            ids = (skew._popularity_rank(random.random(rows), *parameters) * 2654435761 + 12345) % size
        batch[feature] = names(torch.from_numpy(ids))
    return batch


def meet_every_row(
    embeddings: Any, rank: int, world_size: int, sizes: Sequence[int], names: Callable[[Tensor], Tensor]
) -> None:
    """Collective. Initialise all rows and touch all memory of them, by steps with zero gradients."""
    rows = 1 << 16
    for start in range(0, max(sizes), rows * world_size):
        here = torch.arange(start + rank * rows, start + (rank + 1) * rows)
        outputs = embeddings({feature: names(here % size) for feature, size in zip(FEATURES, sizes, strict=True)})
        (sum(output.sum() for output in outputs.values()) * 0).backward()
        embeddings.apply_gradients()


def counts_of(
    embeddings: Any, batches: Sequence[dict[str, Tensor]], collective: Any, sharded: Sequence[str]
) -> dict[str, float]:
    """Collective. Means over the batches: lookups of this rank, its distinct ids in sharded tables, and those of all
    ranks together, of which this rank owns its share."""
    found = defaultdict(list)
    for batch in batches:
        distinct = owned = 0
        for feature in sharded:
            own = batch[feature].unique()
            distinct += len(own)
            splits = torch.full((collective.size,), len(own), dtype=torch.int32)
            every, _ = collective.alltoall(own.repeat(collective.size), splits, f"count/{feature}")
            owned += len(every.unique())
        found["lookups"].append(sum(map(len, batch.values())))
        found["distinct"].append(distinct)
        found["owned"].append(owned / collective.size)
    return {name: float(np.mean(values)) for name, values in found.items()}


def bandwidth() -> float:
    """Bytes/s of a copy, read and written, while this process has a core."""
    source = np.ones(1 << 24, dtype=np.float32)
    target = source.copy()
    seconds = []
    for _ in range(20):
        started = time.process_time()
        np.copyto(target, source)
        seconds.append(time.process_time() - started)
    return 2 * source.nbytes / min(seconds)


def floor_bytes(counts: Mapping[str, float], dim: int, ranks: int) -> dict[str, float]:
    """What each phase must read and write, whoever does it: each id read; each owned row read; each row and gradient
    there and back, and on the wire; vectors written and their gradients read; each owned row, its accumulator and its
    last step read and written."""
    row, others = 4 * dim, (ranks - 1) / ranks
    lookups, distinct, owned = counts["lookups"], counts["distinct"], counts["owned"]
    there = 2 * distinct * row * (1 + others)
    moved = (
        *(8 * lookups, 2 * 8 * distinct * others, owned * row, there),
        *(lookups * row, lookups * row, there, owned * (row + 16)),
    )
    return dict(zip(PHASES, moved, strict=True))


def typical(seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of [steps, 2]: median and 10th percentile of the time passed, median of CPU time."""
    return float(np.median(seconds[:, 0])), float(np.quantile(seconds[:, 0], 0.1)), float(np.median(seconds[:, 1]))


def cpu_name() -> str:
    """Of this machine, with the instructions that matter here."""
    text = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    flags = [flag for flag in ("avx2", "avx512f", "amx_bf16") if f" {flag} " in text]
    return f"{name}, {os.cpu_count()} cores ({', '.join(flags)})"


def on_ranks(function: Callable[..., Any], given: tuple[Any, ...], ranks: int, env: Mapping[str, str]) -> list[Any]:
    """What a function returns on each rank; one rank runs in this process without Horovod."""
    if ranks == 1:
        return [function(*given)]
    from pyspark.sql import SparkSession

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks do not have this folder on their path
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(f"local[{ranks}]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return hvdspark.run(function, given, num_workers=ranks, spark=spark, env=dict(env))
