"""Ranks with tables that save and resume, without a training loop."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hvdspark.artifact.tables import bind_tables
from hvdspark.collectives import Collective, ThreadedCollective, run_threaded
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.embedding.config import Admission, Eviction, SparseOptimizer
from hvdspark.store import Store
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.of_rank import OfRank
from hvdspark.train.train_progress import EpochProgress, TrainProgress

PLACES = [2, 4, 6, 8]  # global batches: all rows twice, then what has changed, twice
ROOT = "runs/run-1/checkpoints"
State = dict[str, Tensor]


class Net(nn.Module):
    """Tables of which rows are evicted, ids wait for admission, and slots are arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        optimizer = SparseOptimizer("adam", 0.05)
        rare, rule = Admission(2, forget_after_steps=3), Eviction(every_steps=2, max_age_steps=2)
        tables = [
            TableConfig("open", 4, admission=rare, eviction=rule, optimizer=optimizer),
            TableConfig("bounded", 4, num_embeddings=1000, placement="row", optimizer=optimizer),
        ]
        self.tables = ShardedEmbeddingCollection(tables, {"one": "open", "two": "bounded"})
        self.out = nn.Linear(11, 1)

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        return self.out(torch.cat([dense, *self.tables({"one": id, "two": id}).values()], dim=1))


class Rank:
    """A module, its tables and its optimizer on one rank."""

    def __init__(self, store: Store, collective: Collective) -> None:
        self.module, self.collective = Net(), collective
        bind_tables(self.module, collective)
        self.optimizer = torch.optim.Adam(self.module.parameters(), 0.05)
        self.checkpoints = Checkpoints(store, "run-1", collective)

    def step(self, number: int) -> None:
        random = torch.Generator().manual_seed(10 * number + self.collective.rank)
        ids = torch.arange(2000) // 2 if number == 1 else torch.randint(0, 80, (40,), generator=random) + 40 * number
        dense = torch.randn(len(ids), 3, generator=random)
        self.optimizer.zero_grad()
        self.module(dense, ids).square().sum().backward()
        for parameter in self.module.parameters():
            assert parameter.grad is not None
            parameter.grad = self.collective.allreduce_sum(parameter.grad, "gradient")
        self.optimizer.step()
        self.module.tables.apply_gradients()

    def save(self, step: int) -> None:
        progress = TrainProgress(BestEpoch("train_loss", 0), 0, step, epoch=EpochProgress(2, step, 80 * step))
        self.checkpoints.begin(self.module, self.optimizer, progress, OfRank([float(step)], [], b"state"))

    def state(self) -> State:
        found = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        for number, shard in enumerate(self.module.tables.shards):
            for place in range(len(shard.tables)):
                found |= {f"{number}/{place}/{name}": tensor for name, tensor in shard.export(place).items()}
        return found


def resumed(store: Store, size: int) -> tuple[int, tuple[str, ...], list[State]]:
    """The place that ranks go on from, what they say, and what they have."""

    def body(collective: ThreadedCollective) -> tuple[int, tuple[str, ...], State]:
        rank = Rank(store, collective)
        progress, warnings = rank.checkpoints.resume(rank.module, rank.optimizer)
        assert progress is not None
        return progress.place[1], warnings, rank.state()

    found = run_threaded(size, body, timeout_s=20)
    assert len({(place, said) for place, said, _ in found}) == 1
    return found[0][0], found[0][1], [state for _, _, state in found]


def same(found: list[State], expected: list[State]) -> bool:
    """Whether all rows, whoever has them, are the same bits."""

    def whole(states: list[State]) -> State:
        rows: State = {name: tensor for name, tensor in states[0].items() if "/" not in name}
        for name in (name for name in states[0] if "/" in name):
            of = name.rsplit("/", 1)[0] + ("/waiting_ids" if "/waiting" in name else "/ids")
            order = torch.cat([state[of] for state in states]).argsort()
            rows[name] = torch.cat([state[name] for state in states])[order]
        return rows

    one, other = whole(found), whole(expected)
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
