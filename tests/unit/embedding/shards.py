"""Shards with rows of every kind in them, for the tests of what is written and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hvdspark.embedding.config import Admission, Eviction, SparseOptimizer, TableConfig
from hvdspark.embedding.plan.placement import home_buckets
from hvdspark.embedding.rows.shard import TableShard

SEED = 7
GROUPS: list[list[TableConfig]] = [
    [
        TableConfig("pages", 4, num_embeddings=5000, placement="row"),
        TableConfig("a/users", 4, admission=Admission(4), eviction=Eviction(every_steps=2, max_age_steps=50)),
        TableConfig("home", 4, num_embeddings=300, placement="table"),
        TableConfig("free ü", 4),
    ],
    [
        TableConfig(
            "narrow", 3, num_embeddings=2000, placement="row", dtype="bfloat16", optimizer=SparseOptimizer("sgd")
        )
    ],
]
HOMES = [[-1, -1, 2048, -1], [-1]]


def with_optimizer(name: str, groups: Sequence[Sequence[TableConfig]] = GROUPS) -> list[list[TableConfig]]:
    optimizer = SparseOptimizer(name, initial_accumulator=0.1)
    return [[replace(table, optimizer=optimizer) for table in tables] for tables in groups]


def new_shards(
    rank: int = 0, world_size: int = 1, groups: Sequence[Sequence[TableConfig]] = GROUPS, seed: int = SEED
) -> list[TableShard]:
    """What one rank has of each group."""
    homes = iter(home_buckets([table for tables in groups for table in tables]))
    return [
        TableShard(tables, rank=rank, world_size=world_size, seed=seed, home_buckets=[next(homes) for _ in tables])
        for tables in groups
    ]


def keys_of(shard: TableShard, step: int, ids: int = 300) -> Tensor:
    """Unique ascending keys of all tables, the same for every rank: some in every step, some in three steps."""
    parts = []
    for number, table in enumerate(shard.tables):
        limit = table.num_embeddings or 10**14
        random = np.random.default_rng([number, 1]).integers(limit, size=ids * 4)
        parts.append(
            shard.key_space.fuse(
                number, torch.from_numpy(np.append(random[step * ids // 3 :][:ids], random[:100])).unique()
            )
        )
    return torch.cat(parts)


def train(ranks: Sequence[Sequence[TableShard]], steps: Sequence[int]) -> None:
    """The same steps, for any number of ranks."""
    for rank, shards in enumerate(ranks):
        for shard in shards:
            for step in steps:
                keys = keys_of(shard, step)
                mine = shard.key_space.owners(keys, len(ranks)) == rank
                gradients = torch.randn(len(keys), shard.dim, generator=torch.Generator().manual_seed(step))
                slots = shard.slots(keys[mine], insert=True)
                shard.update(slots, gradients[mine], step)
                shard.evict(step)


def trained(
    world_size: int = 4, groups: Sequence[Sequence[TableConfig]] = GROUPS, steps: int = 5
) -> list[list[TableShard]]:
    """By rank, by group."""
    ranks = [new_shards(rank, world_size, groups) for rank in range(world_size)]
    train(ranks, range(1, steps + 1))
    return ranks


def assert_same(left: Sequence[Sequence[TableShard]], right: Sequence[Sequence[TableShard]]) -> None:
    """All rows, state and counts of all ranks are the same bits."""
    for group in range(len(left[0])):
        for place in range(len(left[0][group].tables)):
            sides = []
            for ranks in (left, right):
                parts = [shards[group].export(place) for shards in ranks]
                whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                orders = {waiting: whole["waiting_ids" if waiting else "ids"].argsort() for waiting in (False, True)}
                sides.append({name: tensor[orders[name.startswith("waiting")]] for name, tensor in whole.items()})
            assert sides[0].keys() == sides[1].keys()
            for name, values in sides[0].items():
                assert torch.equal(values, sides[1][name]), (left[0][group].tables[place].name, name)
