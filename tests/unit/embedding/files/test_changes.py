"""Files of what has changed: read with those before, they are the rows of the moment, at any world size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark.embedding.config import Admission, Eviction, SparseOptimizer, TableConfig
from hvdspark.embedding.files.shards import read_shards, shard_files
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from tests.unit.embedding.shards import assert_same, keys_of, new_shards

OPTIMIZER = SparseOptimizer("adam")
GROUPS = [
    [
        TableConfig("pages", 4, num_embeddings=5000, placement="row", optimizer=OPTIMIZER),
        TableConfig(
            "a/users",
            4,
            admission=Admission(2, forget_after_steps=3),
            eviction=Eviction(every_steps=2, max_age_steps=3),
            optimizer=OPTIMIZER,
        ),
        TableConfig("rare", 4, eviction=Eviction(every_steps=3, min_count=2), optimizer=OPTIMIZER),
    ],
    [
        TableConfig(
            "narrow",
            3,
            num_embeddings=2000,
            dtype="bfloat16",
            optimizer=SparseOptimizer("ftrl", initial_accumulator=0.1),
        )
    ],
]
Entries = list[dict[str, Any]]


def step_on(ranks: list[list[TableShard]], step: int) -> None:
    for shards in ranks:
        for shard in shards:
            keys = keys_of(shard, step, 60)
            buckets = shard.key_space.buckets(keys)
            keys = keys[(buckets >= shard.buckets[0]) & (buckets < shard.buckets[1])]
            slots = shard.slots(keys, insert=True)
            gradients = torch.sin(keys.double() + step).float()[:, None].expand(-1, shard.dim).contiguous()
            shard.update(slots, gradients, step)
            shard.evict(step)


def save(store: Store, ranks: list[list[TableShard]], delta: int, *, copied: bool = False) -> Entries:
    entries = []
    for shards in ranks:
        files = list(shard_files(shards, state=True, delta=delta, save=f"save-{delta}")) if not copied else []
        if copied:
            files = [file.copied() for file in shard_files(shards, state=True, delta=delta, save=f"save-{delta}")]
        entries += [file.write(store, "tables").plain() for file in files]
        for shard in shards:
            shard.watch()
    return json.loads(json.dumps(entries))


def load(store: Store, entries: Entries, world_size: int, steps: int) -> list[list[TableShard]]:
    ranks = [new_shards(rank, world_size, GROUPS) for rank in range(world_size)]
    for shards in ranks:
        read_shards(store, "tables", entries, shards, steps=steps)
    return ranks


@pytest.mark.parametrize("there", [1, 2, 3])
def test_base_and_changes_are_the_rows_of_the_moment_at_any_world_size(tmp_path: Path, there: int) -> None:
    store, ranks = Store(str(tmp_path)), [new_shards(rank, 2, GROUPS) for rank in range(2)]
    entries: Entries = []
    for number in range(5):
        for step in range(3 * number + 1, 3 * number + 4):
            step_on(ranks, step)
        entries += save(store, ranks, number, copied=number % 2 == 1)
        if number in (0, 1, 4):
            assert_same(load(store, entries, there, step), ranks)


def test_a_copy_no_longer_changes_with_the_shard(tmp_path: Path) -> None:
    store, ranks = Store(str(tmp_path)), [new_shards(0, 1, GROUPS)]
    step_on(ranks, 1)
    files = [file.copied() for file in shard_files(ranks[0], state=True)]
    expected = save(store, ranks, 0)
    step_on(ranks, 2)
    step_on(ranks, 3)
    copies = [file.write(store, "copies").plain() for file in files]
    assert [entry["sha256"] for entry in copies] == [entry["sha256"] for entry in expected]


def test_where_nothing_changes_no_file_is_written(tmp_path: Path) -> None:
    store, ranks = Store(str(tmp_path)), [new_shards(0, 1, GROUPS[1:])]
    step_on(ranks, 1)
    base = save(store, ranks, 0)
    (entry,) = save(store, ranks, 1)
    assert (entry["path"], entry["delta"], entry["rows"]) == (None, 1, {"narrow": 0})
    assert all("delta" not in entry for entry in base)
    ranks_again = [new_shards(0, 1, GROUPS[1:])]
    read_shards(store, "tables", [*base, entry], ranks_again[0], steps=1)
    assert_same(ranks_again, ranks)


def test_changes_of_a_rank_that_are_missing_are_refused(tmp_path: Path) -> None:
    store, ranks = Store(str(tmp_path)), [new_shards(rank, 2, GROUPS) for rank in range(2)]
    step_on(ranks, 1)
    entries = save(store, ranks, 0)
    step_on(ranks, 2)
    changes = save(store, ranks, 1)
    with pytest.raises(CheckpointError, match="in 0 files of the manifest instead of one"):
        load(store, [*entries, *changes[:-1]], 1, 2)
