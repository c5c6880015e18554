"""Ranks of another number, or on other hosts, read from the store what their hosts have not kept, and nothing else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import PreemptedError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from tests.unit.train.datasets import train_spec, write_dataset
from tests.unit.train.toys import click_program, largest_difference, weights_of

ROWS, BATCH = 4096, 1024
STATE = ("state.mean", "state.variance", "state.steps")


class Wide(nn.Module):
    """id [rows] -> logit [rows]: a number of its own for each row, in a bounded and in an unbounded table."""

    def __init__(self) -> None:
        super().__init__()
        adam, init = SparseOptimizer("adam", 0.05), Initialization("uniform", 0.5)
        tables = [
            TableConfig("closed", 16, ROWS, optimizer=adam, init=init, placement="row"),
            TableConfig("open", 16, optimizer=adam, init=init),
        ]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.out = nn.Linear(32, 1)
        self.tables = ShardedEmbeddingCollection(tables, {"one": "closed", "other": "open"}, seed=3)

    def forward(self, id: Tensor) -> Tensor:
        found = self.tables({"one": id, "other": id})
        return self.out(torch.cat([found["one"], found["other"]], dim=1))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def spec_of(store: Store, run_id: str) -> TrainSpec:
    generator = np.random.default_rng(0)
    columns = {
        "id": generator.permutation(ROWS).astype(np.int64),
        "label": generator.integers(0, 2, ROWS).astype(np.float32),
    }
    changes: dict[str, Any] = {"features": ("id",), "batch_size": BATCH, "epochs": 2, "monitor": "train_loss"}
    return train_spec(store, write_dataset(store, columns), run_id=run_id, **changes)


def generation(
    spec: TrainSpec, number: int, hosts: list[str | None], *, leave: bool = False
) -> tuple[list[Program], list[dict[str, Any]]]:
    """Programs of the ranks, and what they report.

    Args:
        hosts: directory of each rank's.
        leave: they make room behind their second batch; else they train to the end.
    """
    programs = [click_program(module=Wide()) for _ in hosts]
    events: list[dict[str, Any]] = []

    def on_rank(collective: ThreadedCollective) -> bool:
        run = functools.partial(train, spec, programs[collective.rank], collective, "cpu", events.append, number)
        try:
            run(preempted=lambda: "others need the slots" if leave else "", scratch=hosts[collective.rank])
        except PreemptedError:
            return True
        return False

    assert set(run_threaded(len(hosts), on_rank, timeout_s=60)) == {leave}
    return programs, events


def rows_of(programs: list[Program]) -> dict[str, Tensor]:
    """Every stored tensor of the tables of all ranks, in the order of their ids."""
    found: dict[str, Tensor] = {}
    shards = [program.module.tables.shards[0] for program in programs]  # type: ignore[union-attr, index]
    for place, table in enumerate(shards[0].tables):
        parts = [shard.export(place) for shard in shards]
        whole = {name: torch.cat([part[name] for part in parts]) for name in ("ids", "rows", "counts", *STATE)}
        assert len(whole["ids"].unique()) == len(whole["ids"]) == ROWS
        found |= {f"{table.name}/{name}": tensor[whole["ids"].argsort()] for name, tensor in whole.items()}
    return found


def share_moved(events: list[dict[str, Any]]) -> float:
    (read,) = [event for event in events if event["event"] == "tables_read"]
    assert read["bytes"] > 500_000
    return float(read["moved_bytes"] / read["bytes"])


@pytest.fixture
def hosts(tmp_path: Path) -> list[str]:
    return [str(tmp_path / name) for name in ("a", "b", "c")]


def left(hosts: list[str]) -> list[Path]:
    return [path for host in hosts for path in Path(host).rglob("*") if path.is_file()]


def test_from_two_ranks_to_three_at_most_38_percent_of_the_bytes_move(store: Store, hosts: list[str]) -> None:
    a, b, c = hosts
    whole, _ = generation(spec_of(store, "whole"), 0, [None, None, None])
    spec = spec_of(store, "cut")
    _, first = generation(spec, 0, [a, b], leave=True)
    assert not [event for event in first if event["event"] == "tables_read"]
    _, second = generation(spec, 1, [c, a, b], leave=True)  # rank 0 is on the host that is new
    assert share_moved(second) <= 0.38
    third, events = generation(spec, 2, [b, a])
    assert share_moved(events) <= 0.55
    assert largest_difference(weights_of(third[0]), weights_of(whole[0])) <= 1e-5
    assert largest_difference(rows_of(third), rows_of(whole)) <= 1e-5
    assert left(hosts[:2]) == [], "the last generation has taken its own with it"


def test_ranks_whose_hosts_changed_places_read_nothing_and_give_the_same_bits(store: Store, hosts: list[str]) -> None:
    a, b, _ = hosts
    whole, _ = generation(spec_of(store, "whole"), 0, [None, None])
    spec = spec_of(store, "cut")
    generation(spec, 0, [a, b], leave=True)
    _, second = generation(spec, 1, [b, a], leave=True)
    assert share_moved(second) == 0.0
    third, events = generation(spec, 2, [a, b])
    assert share_moved(events) == 0.0
    assert largest_difference(weights_of(third[0]), weights_of(whole[0])) == 0.0
    assert largest_difference(rows_of(third), rows_of(whole)) == 0.0
    assert left(hosts) == []


def test_one_rank_of_two_goes_and_comes_back(store: Store, hosts: list[str]) -> None:
    a, b, c = hosts
    spec = spec_of(store, "cut")
    generation(spec, 0, [a, b], leave=True)
    _, alone = generation(spec, 1, [b], leave=True)
    assert share_moved(alone) == pytest.approx(0.5, abs=0.02)
    _, again = generation(spec, 2, [c, b])
    assert share_moved(again) == pytest.approx(0.5, abs=0.02)


def test_where_hosts_keep_nothing_all_is_read_from_the_store(store: Store) -> None:
    spec = spec_of(store, "cut")
    generation(spec, 0, [None, None], leave=True)
    programs, events = generation(spec, 1, [None, None])
    assert share_moved(events) == 1.0
    for rank, program in enumerate(programs):
        (shard,) = program.module.tables.shards  # type: ignore[union-attr, operator]
        assert shard.buckets == ((0, 2048), (2048, 4096))[rank]
