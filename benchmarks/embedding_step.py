"""The embedding part of a training step, phase by phase, beside the floor of its bytes, for 1 and 2 ranks.

    python benchmarks/embedding_step.py [--rows 8192] [--dim 16] [--steps 40] [--ranks 1 2] [--ids skewed]
        [--tables hashed bounded] [--env HOROVOD_CYCLE_TIME=0.3 ...] [--json]

26 columns of ids, looked up, their vectors stacked, gradients sent back, rows updated by rowwise Adagrad; one thread a
rank. No dense layers: the vectors' gradient is a constant tensor. Tables are unbounded with ids of 52 bits, as
`CTRClassifier` has them, or bounded. Every row was met before the clock starts.

The floor is what copying the bytes of each phase would take at the bandwidth of a copy on this rank. Phases come from
`hvdspark.embedding.phases`; in a checkout from before there were phases, only the sum is printed. So two versions are
compared by running this file with each one's Python, in turn, with --json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdspark.collectives import current_collective
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig

sys.path.insert(0, str(Path(__file__).resolve().parent))
import measuring
from measuring import CARDINALITIES, FEATURES, PHASES

MAX_ROWS = 200_000
SMALL = 4096  # smaller tables are replicated, and are no part of this
REUSED_BATCHES = 8


def measure(kind: str, tables_are: str, rows: int, dim: int, steps: int, examples: str) -> dict[str, Any]:
    """Collective. Seconds of each phase in each step on this rank, and what they worked on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    collective, clock = current_collective(), measuring.Clock()
    hashed = tables_are == "hashed"
    sizes = [min(size, MAX_ROWS) for size in CARDINALITIES]
    names = measuring.hashed if hashed else measuring.as_they_are
    tables = [
        TableConfig(feature, dim, None if hashed else size) for feature, size in zip(FEATURES, sizes, strict=True)
    ]
    embeddings = ShardedEmbeddingCollection(tables, dict(zip(FEATURES, FEATURES, strict=True)), collective=collective)
    measuring.meet_every_row(embeddings, collective.rank, collective.size, sizes, names)
    batches = [
        measuring.draw(kind, rows, 1000 * collective.rank + number, sizes, examples, names)
        for number in range(REUSED_BATCHES)
    ]
    sharded = [feature for feature, size in zip(FEATURES, sizes, strict=True) if hashed or size > SMALL]
    gradient = torch.full((rows, len(FEATURES), dim), 1e-6)

    def step(number: int) -> None:
        with clock.phase("other"):
            vectors = embeddings.stacked(batches[number % len(batches)])
            vectors.backward(gradient)
            embeddings.apply_gradients()

    for number in range(2 * len(batches)):  # warms allocators up, and Horovod's memory of names and shapes
        step(number)
    with clock.listening():
        for number in range(steps):
            with clock.step():
                step(number)
    return {
        "steps": [{name: seconds.tolist() for name, seconds in phases.items()} for phases in clock.steps],
        "counts": measuring.counts_of(embeddings, batches, collective, sharded),
        "bandwidth": measuring.bandwidth(),
    }


def summary(results: list[dict[str, Any]], dim: int) -> dict[str, Any]:
    """Milliseconds over the steps of all ranks: (passed, quietest tenth, CPU), beside the floor."""
    steps = [phases for result in results for phases in result["steps"]]
    names = [name for name in (*PHASES, "other", "step") if any(name in phases for phases in steps)]
    milliseconds = {
        name: [1e3 * value for value in measuring.typical(np.array([step.get(name, (0.0, 0.0)) for step in steps]))]
        for name in names
    }
    moved = measuring.floor_bytes(results[0]["counts"], dim, len(results))
    floor = {name: 1e3 * size / results[0]["bandwidth"] for name, size in moved.items()}
    return {
        "ms": milliseconds,
        "floor_ms": floor,
        "times_floor": milliseconds["step"][0] / sum(floor.values()),
        "times_floor_quiet": milliseconds["step"][1] / sum(floor.values()),
        "counts": results[0]["counts"],
        "copy_gb_s": results[0]["bandwidth"] / 1e9,
    }


def report(found: Mapping[str, Any], setting: str) -> None:
    counts = found["counts"]
    print(f"\n{setting}\n  {measuring.cpu_name()}; a copy moves {found['copy_gb_s']:.1f} GB/s")
    print(
        f"  {counts['lookups']:.0f} lookups a rank, in sharded tables {counts['distinct']:.0f} distinct, "
        f"{counts['owned']:.0f} rows owned and updated"
    )
    print(f"  {'ms a step':20} {'passed':>9} {'quiet':>9} {'CPU':>9} {'floor':>9}")
    for name, values in found["ms"].items():
        floor = sum(found["floor_ms"].values()) if name == "step" else found["floor_ms"].get(name, 0.0)
        print(f"  {name:20} " + " ".join(f"{value:9.2f}" for value in (*values, floor)))
    print(f"  {found['times_floor']:.1f} times the floor, in quiet steps {found['times_floor_quiet']:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of each rank's batch")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ids", nargs="+", choices=["skewed", "uniform"], default=["skewed"])
    parser.add_argument("--tables", nargs="+", choices=["hashed", "bounded"], default=["hashed", "bounded"])
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="of the ranks, where there are more")
    parser.add_argument("--json", action="store_true", help="one line for each setting")
    arguments = parser.parse_args()
    examples = str(Path(__file__).resolve().parent.parent / "examples")
    env = dict(pair.split("=", 1) for pair in arguments.env)
    for ranks, kind, tables in itertools.product(arguments.ranks, arguments.ids, arguments.tables):
        given = (kind, tables, arguments.rows, arguments.dim, arguments.steps, examples)
        found = summary(measuring.on_ranks(measure, given, ranks, env), arguments.dim)
        setting = f"{ranks} rank{'s' * (ranks > 1)}, {kind} ids, {tables} tables, {arguments.rows} rows a rank"
        if arguments.json:
            print(json.dumps({"setting": setting, **found}))
        else:
            report(found, setting)


if __name__ == "__main__":
    main()
