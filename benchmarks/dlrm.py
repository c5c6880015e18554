"""Where the time of a DLRM step goes: embeddings, their exchange and the dense layers, for 1 and 2 ranks.

    python benchmarks/dlrm.py [--rows 8192] [--steps 40] [--ranks 1 2] [--ids skewed uniform]
        [--tables bounded hashed click] [--placement auto] [--prefetch no]

DLRM with a bottom MLP 512-256-16 and a top MLP 512-512-256-1, dense layers in bfloat16 where the CPU has it, trained
by Adam; 26 tables with the cardinalities of the Criteo Kaggle data, cut at 10^6 rows, 16 columns, rowwise Adagrad. One
thread a rank. Tables are bounded; or hashed: unbounded, with ids of 52 bits; or what `CTRClassifier` trains, with its
own layer sizes: hashed, and vector and first-order weight of a category in one row (click). Ids are skewed as those of
Criteo (examples/click_data.py) or, the worst case, uniform. Every row was met before the clock starts, so no page is
touched for the first time. One rank runs in this process without Horovod, more are started by `hvdspark.run`.

Times of a phase are without the phases inside it. An exchange includes waiting for the slowest rank, but for its CPU
time. On a machine that has other work to do, look at the quietest tenth of the steps, and at CPU times.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hvdspark.collectives import current_collective
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.models import DLRM
from hvdspark.models.click import ClickModel
from hvdspark.train.precision import resolve_precision

sys.path.insert(0, str(Path(__file__).resolve().parent))
import measuring
from measuring import CARDINALITIES, DIM, FEATURES, typical

NUMBERS = 13
MAX_ROWS = 10**6
SIZES = [min(size, MAX_ROWS) for size in CARDINALITIES]
SMALL = 4096  # smaller bounded tables are replicated, unless the placement says otherwise
DENSE = ("dense forward", "dense backward")
NOT_EMBEDDING = (*DENSE, "dense exchange", "dense optimizer")
REUSED_BATCHES = 8


def tables_and_network(
    tables_are: str, placement: str, collective: Any
) -> tuple[ShardedEmbeddingCollection, nn.Module]:
    """The tables, and a module that is called with numbers [rows, N] and ids by feature; both on this rank."""
    if tables_are == "click":
        click = ClickModel("dlrm", NUMBERS, FEATURES, first_order=True, number_inputs="linear_and_log", one_table=True)
        assert click.rows is not None
        click.rows.bind(collective)
        return click.rows, OnColumns(click)
    tables = [
        TableConfig(feature, DIM, None if tables_are == "hashed" else size, placement=placement)
        for feature, size in zip(FEATURES, SIZES, strict=True)
    ]
    embeddings = ShardedEmbeddingCollection(tables, dict(zip(FEATURES, FEATURES, strict=True)), collective=collective)
    return embeddings, OnVectors(embeddings)


class OnColumns(nn.Module):
    """A ClickModel, which takes columns."""

    def __init__(self, click: ClickModel) -> None:
        super().__init__()
        self.click = click

    def forward(self, numbers: Tensor, ids: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self.click(*numbers.unbind(dim=1), *ids.values())
        return logits


class OnVectors(nn.Module):
    """DLRM over the vectors of a collection."""

    def __init__(self, embeddings: ShardedEmbeddingCollection) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.network = DLRM(NUMBERS, len(FEATURES), DIM, (512, 512, 256), bottom=(512, 256))

    def forward(self, numbers: Tensor, ids: dict[str, Tensor]) -> Tensor:
        vectors = self.embeddings.stacked(ids)
        logits: Tensor = self.network(numbers, vectors, numbers.new_zeros(len(numbers), 0))
        return logits


def measure(
    kind: str, rows: int, steps: int, tables_are: str, placement: str, prefetch: str, examples: str
) -> dict[str, Any]:
    """Collective. Train; phases of each step on this rank, and what they worked on."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    collective, clock = current_collective(), measuring.Clock()
    hashed = tables_are != "bounded"
    names: Callable[[Tensor], Tensor] = measuring.hashed if hashed else measuring.as_they_are
    embeddings, network = tables_and_network(tables_are, placement, collective)
    measuring.meet_every_row(embeddings, collective.rank, collective.size, SIZES, names)
    parameters = dict(network.named_parameters())
    adam = torch.optim.Adam(parameters.values(), 1e-3, fused=True)
    optimizer = collective.distributed_optimizer(adam, parameters.items())
    precision = resolve_precision("auto", "cpu", collective)
    random = torch.Generator().manual_seed(collective.rank)
    batches = [
        (
            torch.randn(rows, NUMBERS, generator=random),
            measuring.draw(kind, rows, 1000 * collective.rank + number, SIZES, examples, names),
            (torch.rand(rows, generator=random) < 0.25).float(),
        )
        for number in range(REUSED_BATCHES)
    ]

    def step(number: int) -> None:
        numbers, ids, labels = batches[number % len(batches)]
        with clock.phase("dense forward"), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(numbers, ids).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        if prefetch != "no":
            with clock.phase("other of embeddings"):
                embeddings.prefetch(batches[(number + 1) % len(batches)][1], stale_rows=prefetch == "stale rows")
        with clock.phase("dense backward"):
            (loss / (rows * collective.size)).backward()
        with clock.phase("dense exchange"):
            optimizer.synchronize()
        with clock.phase("dense optimizer"):
            optimizer.step()
            adam.zero_grad()
        with clock.phase("other of embeddings"):
            embeddings.apply_gradients()

    for number in range(len(batches)):  # warms allocators up, and Horovod's memory of names and shapes
        step(number)
    with clock.listening():
        for number in range(steps):
            with clock.step():
                step(number)
    sharded = [
        feature for feature, size in zip(FEATURES, SIZES, strict=True) if hashed or size > SMALL or placement == "row"
    ]
    return {
        "steps": [dict(phases) for phases in clock.steps],
        "counts": measuring.counts_of(embeddings, [ids for _, ids, _ in batches], collective, sharded),
        "bandwidth": measuring.bandwidth(),
        "precision": precision,
        "dim": embeddings.tables[FEATURES[0]].dim,
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
        f"{results[0]['precision']}\n  {measuring.cpu_name()}"
    )
    print(
        f"  {lookups} lookups a rank, in sharded tables {counts['distinct']:.0f} distinct keys; "
        f"{counts['owned']:.0f} rows owned and updated"
    )
    print(f"  {'ms a step':24} {'passed':>9} {'quiet':>9} {'CPU':>9}")
    for name, seconds in [*sorted(phases.items(), key=lambda item: -typical(item[1])[0]), ("step", whole)]:
        print(f"  {name:24} " + " ".join(f"{value * 1e3:9.2f}" for value in typical(seconds)))
    print(f"  {'not dense fwd, bwd':24} " + " ".join(f"{value:9.1%}" for value in typical(share)) + "   goal: 25 %")
    rates = " ".join(f"{lookups / value / 1e6:9.2f}" for value in typical(sparse))
    print(f"  {'M lookups/s a rank':24} {rates}   goal: 6, of the embeddings alone")
    print(
        f"  {'rows/s of all ranks':24} " + " ".join(f"{len(results) * rows / value:9,.0f}" for value in typical(whole))
    )
    passed = typical(sparse)[0]
    moved = sum(measuring.floor_bytes(counts, results[0]["dim"], len(results)).values())
    floor = moved / results[0]["bandwidth"]
    print(
        f"  floor: {moved / 1e6:.1f} MB at {results[0]['bandwidth'] / 1e9:.1f} GB/s (copy) = {floor * 1e3:.2f} ms; "
        f"{passed / floor:.1f} times that passed, {moved / passed / 1e9:.2f} GB/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of each rank's batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ids", nargs="+", choices=["skewed", "uniform"], default=["skewed", "uniform"])
    parser.add_argument(
        "--tables", nargs="+", choices=["bounded", "hashed", "click"], default=["bounded", "hashed", "click"]
    )
    parser.add_argument("--placement", choices=["auto", "row"], default="auto", help="of bounded and hashed tables")
    parser.add_argument("--prefetch", choices=["no", "ids", "stale rows"], default="no", help="of the next batch")
    parser.add_argument("--env", nargs="*", default=[], metavar="NAME=VALUE", help="of the ranks, where there are more")
    arguments = parser.parse_args()
    examples = str(Path(__file__).resolve().parent.parent / "examples")
    env = dict(pair.split("=", 1) for pair in arguments.env)
    for ranks in arguments.ranks:
        for kind, tables in itertools.product(arguments.ids, arguments.tables):
            given = (kind, arguments.rows, arguments.steps, tables, arguments.placement, arguments.prefetch, examples)
            results = measuring.on_ranks(measure, given, ranks, env)
            setting = f"{kind} ids, {tables} tables, placement {arguments.placement}, prefetch {arguments.prefetch}"
            report(results, setting, arguments.rows)


if __name__ == "__main__":
    main()
