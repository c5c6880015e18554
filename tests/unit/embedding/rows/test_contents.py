"""Rows of a shard by ranges of buckets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.config import Admission, SparseOptimizer, TableConfig
from hvdspark.embedding.ids.hashing import BUCKETS
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.embedding.rows.shard import TableShard

DIM = 4
TABLES = [
    TableConfig("bounded", DIM, num_embeddings=5000),
    TableConfig("open", DIM, admission=Admission(min_count=2)),
    TableConfig("home", DIM, num_embeddings=300),
    TableConfig("free", DIM),
]
HOMES = [-1, -1, 2048, -1]


def trained(rank: int = 0, world_size: int = 1) -> TableShard:
    shard = TableShard(TABLES, rank=rank, world_size=world_size, seed=3, home_buckets=HOMES)
    random = np.random.default_rng(5)
    limits = [5000, 10**12, 300, 10**12]
    ids = [torch.from_numpy(random.integers(limit, size=900)).unique() for limit in limits]
    for step in (1, 2):
        keys = torch.cat([shard.key_space.fuse(number, part[::step]) for number, part in enumerate(ids)])
        mine = keys[shard.key_space.owners(keys, world_size) == rank]
        slots = shard.slots(mine, insert=True)
        shard.update(slots, torch.ones(len(mine), DIM) * step, step)
    return shard


SHARD = trained()


@given(st.sets(st.integers(0, BUCKETS), min_size=2, max_size=70))
def test_parts_are_the_whole_cut_by_bucket(cuts: set[int]) -> None:
    edges = sorted(cuts | {0, BUCKETS})
    ranges = list(itertools.pairwise(edges))
    parts = list(SHARD.parts(ranges))
    assert [(part.first, part.stop) for part in parts] == ranges
    space = KeySpace(TABLES, HOMES)
    for table in range(len(TABLES)):
        whole = SHARD.export(table)
        tensors = [
            {column.name: torch.cat(list(column.blocks())) for column in part.columns(table, state=True)}
            for part in parts
        ]
        for part, (first, stop) in zip(tensors, ranges, strict=True):
            for name in ("ids", "waiting_ids"):
                assert (part[name].diff() > 0).all()
                buckets = space.buckets(space.fuse(table, part[name]))
                assert ((buckets >= first) & (buckets < stop)).all()
        for ids, prefix in (("ids", ""), ("waiting_ids", "waiting")):
            order = torch.cat([part[ids] for part in tensors]).argsort()
            for name in whole:
                if name.startswith("waiting") == bool(prefix):
                    assert torch.equal(torch.cat([part[name] for part in tensors])[order], whole[name]), name


def test_something_of_every_kind_was_looked_at() -> None:
    assert all(count > 100 for count in SHARD.row_counts())
    assert len(SHARD.export(1)["waiting_ids"]) > 100


def test_without_state_there_are_ids_counts_and_rows() -> None:
    (part,) = SHARD.parts([(0, BUCKETS)])
    assert [column.name for column in part.columns(0, state=False)] == ["ids", "counts", "rows"]
    _, counts, rows = (torch.cat(list(column.blocks())) for column in part.columns(3, state=False))
    assert torch.equal(counts, SHARD.export(3)["counts"])
    assert torch.equal(rows, SHARD.export(3)["rows"])


def test_a_rank_exports_no_bucket_of_others() -> None:
    shard = trained(rank=1, world_size=3)
    (below, above) = shard.parts([(0, shard.buckets[0]), (shard.buckets[1], BUCKETS)])
    assert all(len(ids) == 0 for part in (below, above) for ids in (*part.ids, *part.waiting))
    assert len(shard.export(0)["ids"])


def test_buckets_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    buckets = KeySpace.buckets
    monkeypatch.setattr(KeySpace, "buckets", lambda self, keys: (asked.append(len(keys)), buckets(self, keys))[1])
    list(SHARD.parts([(first, first + 64) for first in range(0, BUCKETS, 64)]))
    assert sum(asked) == len(SHARD.memory.index) + len(SHARD.memory.waiting.all_keys)


def test_many_rows_are_copied_in_blocks() -> None:
    table = TableConfig("t", 2, optimizer=SparseOptimizer("sgd"))
    shard = TableShard([table])
    keys = torch.arange(70_000)
    shard.slots(keys, insert=True)
    (part,) = shard.parts([(0, BUCKETS)])
    blocks = {column.name: [len(block) for block in column.blocks()] for column in part.columns(0, state=False)}
    assert blocks["rows"] == [65_536, 4_464]
    assert torch.equal(shard.export(0)["rows"], shard.gather(shard.slots(keys, insert=False)))
    other = TableShard([table])
    other.load(0, shard.export(0))
    assert torch.equal(other.export(0)["rows"], shard.export(0)["rows"])
