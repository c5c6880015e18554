"""Rows/s of a training step beside TorchRec's table-wise path on CPUs: 2 ranks, the same ids, the same dense layers.

    python benchmarks/versus_torchrec.py [--rows 8192] [--steps 30] [--rounds 5] [--networks mlp dlrm]
        [--tables bounded] [--peer ~/.cache/hvdspark/torchrec]

TorchRec and FBGEMM are installed into an environment of their own (--peer) with the versions below, once. Both sides
train 26 tables of 16 columns with exact rowwise Adagrad and the dense layers with Adam, in float32, with one thread a
rank, and take turns: a round is one side, then the other. Ids are those of `benchmarks/dlrm.py`, skewed as Criteo's.

- hvdspark: ranks of `hvdspark.run`, Horovod over Gloo. Tables up to 4096 rows are replicated, the others sharded by
  row; bounded as TorchRec's are, or `hashed`, as CTRClassifier has them (TorchRec's CPU path has none such).
- TorchRec: `DistributedModelParallel` over torch.distributed's Gloo, 13 tables a rank, fused optimizer, jagged inputs
  made before the clock starts.

The networks: "mlp" is (64, 64) over all vectors and numbers; "dlrm" the bottom 512-256-16 and top 512-512-256-1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
# FBGEMM's binaries are of one release of torch.
PEER = ("torch==2.13.0", "torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0")
# What torchrec imports; its own requirements name the CUDA build of FBGEMM.
PEER_NEEDS = ("numpy", "pyre-extensions", "iopath", "tensordict", "torchmetrics==1.0.3", "tqdm", "pandas", "psutil")
PEER_NAME = "TorchRec"
RANKS = 2
DIM = 16
NUMBERS = 13
MAX_ROWS = 10**6
REUSED_BATCHES = 8
WARM_STEPS = 10


class Network(nn.Module):
    """Dense layers over numbers [rows, N] and vectors [rows, F, D]; one logit for each row. Plain torch for both."""

    def __init__(self, kind: str, fields: int) -> None:
        super().__init__()
        self.dlrm = kind == "dlrm"
        if self.dlrm:
            self.bottom = _layers(NUMBERS, 512, 256, DIM)
            pairs = (fields + 1) * fields // 2
            self.top = _layers(pairs + DIM, 512, 512, 256, 1)
            self.register_buffer("lower", torch.tril_indices(fields + 1, fields + 1, -1), persistent=False)
        else:
            self.top = _layers(NUMBERS + fields * DIM, 64, 64, 1)

    def forward(self, numbers: Tensor, vectors: Tensor) -> Tensor:
        if not self.dlrm:
            logits: Tensor = self.top(torch.cat([numbers, vectors.flatten(1)], dim=1))
            return logits.squeeze(1)
        dense = self.bottom(numbers)
        every = torch.cat([dense.unsqueeze(1), vectors], dim=1)
        products = torch.bmm(every, every.transpose(1, 2))[:, self.lower[0], self.lower[1]]
        logits = self.top(torch.cat([dense, products], dim=1))
        return logits.squeeze(1)


def _layers(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def timed(step: Callable[[int], None], steps: int) -> list[tuple[float, float]]:
    """Seconds of each step, passed and of the CPU, after some that warm up."""
    seconds = []
    for number in range(WARM_STEPS + steps):
        passed, cpu = time.perf_counter(), time.process_time()
        step(number % REUSED_BATCHES)
        seconds.append((time.perf_counter() - passed, time.process_time() - cpu))
    return seconds[WARM_STEPS:]


def loss_of(logits: Tensor, labels: Tensor, rows: int) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / rows


def ours(network: str, tables_are: str, rows: int, steps: int, here: str, examples: str) -> list[tuple[float, float]]:
    """Collective. One rank of hvdspark. `here` is this folder, of which ranks know nothing."""
    sys.path.insert(0, here)
    import measuring

    from hvdspark.collectives import current_collective
    from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig

    torch.manual_seed(0)
    torch.set_num_threads(1)
    collective, hashed = current_collective(), tables_are == "hashed"
    sizes = [min(size, MAX_ROWS) for size in measuring.CARDINALITIES]
    names = measuring.hashed if hashed else measuring.as_they_are
    tables = [
        TableConfig(name, DIM, None if hashed else size) for name, size in zip(measuring.FEATURES, sizes, strict=True)
    ]
    features = {name: name for name in measuring.FEATURES}
    embeddings = ShardedEmbeddingCollection(tables, features, collective=collective)
    measuring.meet_every_row(embeddings, collective.rank, collective.size, sizes, names)
    dense = Network(network, len(features))
    parameters = {**dict(dense.named_parameters()), **dict(embeddings.named_parameters())}
    adam = torch.optim.Adam(parameters.values(), 1e-3, fused=True)
    optimizer = collective.distributed_optimizer(adam, parameters.items())
    batches = [
        (measuring.draw("skewed", rows, 1000 * collective.rank + n, sizes, examples, names), *dense_of(rows, n))
        for n in range(REUSED_BATCHES)
    ]

    def step(number: int) -> None:
        ids, numbers, labels = batches[number]
        logits = dense(numbers, embeddings.stacked(ids))
        loss_of(logits, labels, rows * collective.size).backward()
        optimizer.step()
        adam.zero_grad()
        embeddings.apply_gradients()

    return timed(step, steps)


def dense_of(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Numbers [rows, N] and labels [rows] of a batch."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, NUMBERS, generator=random), (torch.rand(rows, generator=random) < 0.25).float()


def theirs(network: str, rows: int, steps: int, folder: str) -> list[tuple[float, float]]:
    """Collective. One rank of TorchRec, in its own environment; the ids were drawn by ours."""
    import torch.distributed as dist
    import torchrec
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    drawn = torch.load(f"{folder}/ids-{rank}.pt", weights_only=True)
    sizes, batch_ids = drawn["sizes"], drawn["batches"]
    names = [f"C{n + 1}" for n in range(len(sizes))]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torchrec.EmbeddingBagCollection(
                tables=[
                    torchrec.EmbeddingBagConfig(
                        name=f"t_{name}", embedding_dim=DIM, num_embeddings=size, feature_names=[name]
                    )
                    for name, size in zip(names, sizes, strict=True)
                ],
                device=torch.device("meta"),
            )
            self.dense = Network(network, len(names))

        def forward(self, numbers: Tensor, ids: Any) -> Tensor:
            vectors = self.embeddings(ids).values().view(len(numbers), len(names), DIM)
            logits: Tensor = self.dense(numbers, vectors)
            return logits

    model = Model()
    sharder: Any = EmbeddingBagCollectionSharder(
        fused_params={"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": 0.02, "eps": 1e-8}
    )
    plan = construct_module_sharding_plan(
        model.embeddings,
        {f"t_{name}": table_wise(rank=n % RANKS, compute_kernel="fused") for n, name in enumerate(names)},
        sharder,
        local_size=RANKS,
        world_size=RANKS,
        device_type="cpu",
    )
    distributed = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=ShardingPlan({"embeddings": plan}),
        sharders=[sharder],
    )
    optimizer = torch.optim.Adam(model.dense.parameters(), 1e-3, fused=True)
    lengths = torch.ones(len(names) * rows, dtype=torch.int32)
    batches = [
        (torchrec.KeyedJaggedTensor(keys=names, values=ids.flatten(), lengths=lengths), *dense_of(rows, n))
        for n, ids in enumerate(batch_ids)
    ]

    def step(number: int) -> None:
        ids, numbers, labels = batches[number]
        # A new one for each step: it keeps what it works out about itself.
        jagged = torchrec.KeyedJaggedTensor(keys=names, values=ids.values(), lengths=ids.lengths())
        loss_of(distributed(numbers, jagged), labels, rows).backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = timed(step, steps)
    dist.destroy_process_group()
    return seconds


def peer_python(folder: Path) -> str:
    """The Python of an environment with TorchRec, made where it is missing."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {', '.join(PEER)} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, PEER[0], *PEER_NEEDS], check=True)
        subprocess.run([*pip, "--no-deps", *PEER[1:]], check=True)
        (folder / "installed").touch()
    return str(python)


def run_peer(python: str, network: str, rows: int, steps: int, folder: str) -> list[list[tuple[float, float]]]:
    """Steps of each rank of TorchRec."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = json.dumps({"network": network, "rows": rows, "steps": steps, "folder": folder})
    ranks = []
    for rank in range(RANKS):
        of_rank = {"RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": RANKS}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": 1}
        env = {**os.environ, **{name: str(value) for name, value in {**of_rank, **meeting}.items()}}
        env.pop("PYTHONPATH", None)
        command = [python, __file__, "--rank", given]
        ranks.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
    try:
        answers = [rank.communicate(timeout=900)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"TorchRec's ranks ended with {[rank.returncode for rank in ranks]}: see above")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def draw_for_peer(rows: int, folder: str, examples: str) -> None:
    """Write the ids of each rank's batches where TorchRec's ranks find them."""
    import measuring

    sizes = [min(size, MAX_ROWS) for size in measuring.CARDINALITIES]
    for rank in range(RANKS):
        drawn = [
            measuring.draw("skewed", rows, 1000 * rank + n, sizes, examples, measuring.as_they_are)
            for n in range(REUSED_BATCHES)
        ]
        batches = [torch.stack([batch[name] for name in measuring.FEATURES]) for batch in drawn]
        torch.save({"sizes": sizes, "batches": batches}, f"{folder}/ids-{rank}.pt")


def typical(ranks: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Medians over the steps of all ranks, in milliseconds: passed, CPU."""
    steps = [step for rank in ranks for step in rank]
    return 1e3 * statistics.median(s[0] for s in steps), 1e3 * statistics.median(s[1] for s in steps)


def main() -> None:
    import tempfile

    import measuring

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="of each rank's batch")
    parser.add_argument("--steps", type=int, default=30, help="of a side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=["mlp", "dlrm"], default=["mlp", "dlrm"])
    parser.add_argument("--tables", nargs="+", choices=["bounded", "hashed"], default=["bounded"], help="of hvdspark")
    cache = os.environ.get("HVDSPARK_CACHE", "~/.cache/hvdspark")
    parser.add_argument("--peer", default=f"{cache}/torchrec", help="the environment with TorchRec, made if missing")
    arguments = parser.parse_args()
    rows, steps = arguments.rows, arguments.steps
    examples = str(HERE.parent / "examples")
    python = peer_python(Path(arguments.peer).expanduser())
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="hvdspark-versus-") as folder:
        draw_for_peer(rows, folder, examples)
        for number in range(arguments.rounds):
            for network in arguments.networks:
                for tables in arguments.tables:
                    ranks = measuring.on_ranks(ours, (network, tables, rows, steps, str(HERE), examples), RANKS, {})
                    found[network, f"hvdspark, {tables}"].append(typical(ranks))
                found[network, PEER_NAME].append(typical(run_peer(python, network, rows, steps, folder)))
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    print(f"{measuring.cpu_name()}; {RANKS} ranks of one thread, {rows} rows each; {arguments.rounds} rounds")
    print(f"{'medians':28} {'ms a step':>10} {'CPU ms':>8} {'rows/s':>10}   times TorchRec in a round: median, range")
    for (network, side), measured in sorted(found.items()):
        passed, cpu = (statistics.median(values) for values in zip(*measured, strict=True))
        row = f"{network + ', ' + side:28} {passed:10.1f} {cpu:8.1f} {RANKS * rows / passed * 1e3:10,.0f}"
        if side != PEER_NAME:
            peer = found[network, PEER_NAME]
            ratios = sorted(theirs[0] / own[0] for own, theirs in zip(measured, peer, strict=True))
            row += f"   {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(row)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(theirs(**json.loads(sys.argv[2]))))
    else:
        main()
