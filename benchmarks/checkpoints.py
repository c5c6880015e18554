"""What checkpoints cost while a model of about 1 GB trains on 2 ranks of this host.

    python benchmarks/checkpoints.py [--rows 7000000] [--seconds 100] [--every 30] [--ranks 2] [--turns 2]

One table with Adagrad (144 bytes a row with state and counts), every row of which was met, 26 lookups a row of a batch,
skewed as Criteo's ids are, below two dense layers. The same steps are trained without checkpoints and with one every so
many seconds, in turn; printed are rows a second of both, and of each checkpoint how long training stood still for it,
its bytes, and the seconds of writing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.artifact.tables import bind_tables
from hvdspark.collectives import current_collective
from hvdspark.embedding import ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.store import Store
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.of_rank import OfRank
from hvdspark.train.train_progress import EpochProgress, TrainProgress

sys.path.insert(0, str(Path(__file__).resolve().parent))
import measuring

DIM, LOOKUPS, BATCH = 16, 26, 4096


class Clicks(nn.Module):
    """ids [rows, 26] -> logit [rows]."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        table = TableConfig("ids", DIM, rows, placement="row", optimizer=SparseOptimizer("adagrad", 0.01))
        self.tables = ShardedEmbeddingCollection([table], {"ids": "ids"})
        self.top = nn.Sequential(nn.Linear(LOOKUPS * DIM, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.tables({"ids": ids})["ids"].flatten(1)).squeeze(1)


def train(uri: str, rows: int, seconds: float, every: float, turns: int) -> dict[str, Any]:
    """Collective. Steps of turns without and with checkpoints; rows a second of each, and what checkpoints cost."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    collective = current_collective()
    module = Clicks(rows)
    bind_tables(module, collective)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    step = 0

    def one_step(ids: Tensor) -> None:
        optimizer.zero_grad()
        module(ids).square().mean().backward()
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad = collective.allreduce_sum(parameter.grad, "dense")
        optimizer.step()
        module.tables.apply_gradients()

    for start in range(0, rows, 1 << 20):  # every row is met
        ids = torch.arange(start, min(start + (1 << 20), rows))
        mine = ids[collective.rank :: collective.size]
        mine = mine[: len(mine) // LOOKUPS * LOOKUPS].reshape(-1, LOOKUPS)
        for part in mine.split(BATCH):
            one_step(part)
        # As many steps on every rank.
    generator = torch.Generator().manual_seed(collective.rank)

    def draw() -> Tensor:
        # A power law: few ids often, most of them rarely.
        uniform = torch.rand(BATCH, LOOKUPS, generator=generator, dtype=torch.float64)
        return (rows**uniform).long().clamp(max=rows - 1) * 2654435761 % rows

    found: dict[str, Any] = {"without": [], "with": [], "checkpoints": []}
    for turn in range(turns):
        for kind in ("without", "with"):
            checkpoints = Checkpoints(Store(uri), f"{turn}-{kind}", collective)
            started = last = time.perf_counter()
            done, told, stalled = 0, True, 0.0
            while True:
                one_step(draw())
                done, step = done + 1, step + 1
                now = time.perf_counter()
                asked = [float(now - started > seconds), float(kind == "with" and now - last > every)]
                over, due = collective.broadcast(torch.tensor(asked), 0, "asked").tolist()
                if not told and checkpoints.written is not None:
                    told, written = True, checkpoints.written
                    found["checkpoints"].append((stalled, written.bytes, written.seconds, written.busy_s))
                if over:
                    break
                if due:
                    before = time.perf_counter()
                    checkpoints.settle()
                    progress = TrainProgress(
                        BestEpoch("l", 0), 0, step, epoch=EpochProgress(collective.size, step, step)
                    )
                    checkpoints.begin(module, optimizer, progress, OfRank([0.0], [0.0], b"state"))
                    last = time.perf_counter()
                    told, stalled = False, last - before
            checkpoints.settle()
            found[kind].append(done * BATCH * collective.size / (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=7_000_000)
    parser.add_argument("--seconds", type=float, default=100.0, help="of each turn")
    parser.add_argument("--every", type=float, default=30.0, help="seconds from one checkpoint to the next")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where the store is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        given = (folder, arguments.rows, arguments.seconds, arguments.every, arguments.turns)
        found = measuring.on_ranks(train, given, arguments.ranks, {})[0]
    without, with_them = statistics.median(found["without"]), statistics.median(found["with"])
    print(f"{arguments.rows * 144 / 1e9:.2f} GB of rows and state on {arguments.ranks} ranks; {measuring.cpu_name()}")
    print(f"rows a second: {without:,.0f} without, {with_them:,.0f} with a checkpoint every {arguments.every:g} s")
    for kind in ("without", "with"):
        print(f"  {kind}: {', '.join(f'{rate:,.0f}' for rate in found[kind])} in turn")
    print(f"cost {100 * (1 - with_them / without):.1f} %")
    for stalled, size, seconds, busy in found["checkpoints"]:
        print(
            f"  stood still {stalled:.2f} s; {size / 1e6:,.0f} MB in {seconds:.1f} s, {busy:.1f} s of a CPU on rank 0"
        )


if __name__ == "__main__":
    main()
