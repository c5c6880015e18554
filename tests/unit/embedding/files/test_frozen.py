"""Frozen tables give what live ones give, and read no more than they are asked for."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from hvdspark.collectives import LocalCollective
from hvdspark.embedding.config import DISTRIBUTIONS, Initialization, SparseOptimizer, TableConfig
from hvdspark.embedding.files.frozen import FrozenGroup
from hvdspark.embedding.files.host_copies import locate_files
from hvdspark.embedding.files.shards import write_shards
from hvdspark.embedding.files.tensor_file import write_columns
from hvdspark.embedding.module import ShardedEmbeddingCollection
from hvdspark.embedding.rows.column import Column
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.store import Store
from tests.unit.embedding.shards import GROUPS, HOMES, SEED, keys_of, trained

Entries = list[dict[str, Any]]


def save(store: Store, ranks: list[list[TableShard]], *, state: bool = False) -> Entries:
    entries = [entry for shards in ranks for entry in write_shards(store, "tables", shards, state=state)]
    return json.loads(json.dumps(entries, sort_keys=True))


def frozen(store: Store, entries: Entries, tables: list[TableConfig], homes: list[int]) -> FrozenGroup:
    return FrozenGroup(tables, homes, SEED, entries, locate_files(store, "tables", "fingerprint"))


def asked(shard: TableShard) -> Tensor:
    """Keys of every table: trained ones, ones that wait, and ones never met."""
    met = torch.cat([keys_of(shard, step) for step in range(1, 6)])
    random = np.random.default_rng(9)
    fresh = [
        shard.key_space.fuse(number, torch.from_numpy(random.integers(table.num_embeddings or 10**14, size=200)))
        for number, table in enumerate(shard.tables)
    ]
    return torch.cat([met, *fresh]).unique()


def live(shard: TableShard, keys: Tensor) -> Tensor:
    return shard.gather(shard.slots(keys, insert=False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_rows_are_those_of_a_live_shard(tmp_path: Path, dtype: str, distribution: str) -> None:
    init = Initialization(distribution, 0.3)
    groups = [[replace(table, dtype=dtype, init=init) for table in tables] for tables in GROUPS]
    store = Store(str(tmp_path))
    entries = save(store, trained(3, groups))
    (whole,) = trained(1, groups)
    for shard, homes in zip(whole, HOMES, strict=True):
        group = frozen(store, entries, list(shard.tables), homes)
        for keys in (asked(shard), asked(shard)[::7], torch.arange(0)):
            rows = group.rows(keys)
            assert rows.dtype == torch.float32
            assert torch.equal(rows, live(shard, keys))
    known = live(whole[0], asked(whole[0])).abs().sum(dim=1) > 0
    assert known.any()
    assert not known.all(), "ids without a row are among those asked for"


def test_keys_may_come_in_any_order(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(2))
    for shard, homes in zip(trained(1)[0], HOMES, strict=True):
        keys = asked(shard)
        keys = keys[torch.randperm(len(keys))]
        assert torch.equal(frozen(store, entries, list(shard.tables), homes).rows(keys), live(shard, keys))


def test_files_with_state_serve_as_well(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(2), state=True)
    shard = trained(1)[0][0]
    assert torch.equal(frozen(store, entries, GROUPS[0], HOMES[0]).rows(asked(shard)), live(shard, asked(shard)))


def test_groups_may_be_others_than_those_that_were_saved(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(2))
    tables, homes = [GROUPS[0][3], GROUPS[0][0]], [-1, -1]
    shard = trained(1, [tables])[0][0]
    keys = torch.cat([shard.key_space.fuse(1, torch.arange(0, 5000, 3)), torch.tensor([7])]).unique()
    saved = trained(1)[0][0]
    numbers, ids = shard.key_space.tables_of(keys), shard.key_space.ids_of(keys)
    expected = torch.where(
        (numbers == 0).unsqueeze(1),
        live(saved, saved.key_space.fuse(3, ids)),
        live(saved, saved.key_space.fuse(0, ids % 5000)),
    )
    assert torch.equal(frozen(store, entries, tables, homes).rows(keys), expected)


def test_before_training_there_is_no_file(tmp_path: Path) -> None:
    store, shard = Store(str(tmp_path)), TableShard(GROUPS[0], seed=SEED, home_buckets=HOMES[0])
    group = frozen(store, save(store, [[shard]]), GROUPS[0], HOMES[0])
    assert torch.equal(group.rows(asked(shard)), live(shard, asked(shard)))
    assert group.mapped_files == 0


def test_an_id_beyond_the_last_is_not_that_of_the_next_table(tmp_path: Path) -> None:
    """Ids of all tables lie in one run: a search must not end in the next table's."""
    tables, homes = [TableConfig("first", 2), TableConfig("empty", 2), TableConfig("second", 2)], [7] * 3
    shard, store = TableShard(tables, seed=SEED, home_buckets=homes), Store(str(tmp_path))
    for number, ids in ((0, torch.arange(10)), (2, torch.arange(10, 20))):
        shard.slots(shard.key_space.fuse(number, ids), insert=True)
    keys = torch.cat([shard.key_space.fuse(number, torch.arange(30)) for number in range(3)])
    rows = frozen(store, save(store, [[shard]]), tables, homes).rows(keys)
    assert torch.equal(rows, live(shard, keys))
    assert rows.view(3, 30, 2).any(dim=2).sum(dim=1).tolist() == [10, 0, 10]


def test_a_file_of_waiting_ids_alone(tmp_path: Path) -> None:
    shard, store = TableShard([GROUPS[0][1]], seed=SEED), Store(str(tmp_path))
    shard.slots(torch.arange(50), insert=True)
    entries = save(store, [[shard]], state=True)
    assert any(entry["path"] for entry in entries)
    assert frozen(store, entries, [GROUPS[0][1]], [-1]).rows(torch.arange(60)).abs().sum() == 0


def test_files_are_mapped_when_they_are_touched(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shard = trained(1)[0][0]
    group = frozen(store, save(store, [[shard]]), GROUPS[0], HOMES[0])
    keys = asked(shard)
    buckets = shard.key_space.buckets(keys)
    group.rows(keys[buckets < 64])
    assert group.mapped_files == 1
    group.rows(keys[buckets < 128])
    assert group.mapped_files == 2


def resident(path: Path) -> tuple[int, int]:
    """(mapped, resident) bytes of a file in this process, by the kernel's account."""
    size = rss = 0
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mine = line.endswith(f" {path}")
        elif mine and line.startswith("Size:"):
            size += int(line.split()[1]) << 10
        elif mine and line.startswith("Rss:"):
            rss += int(line.split()[1]) << 10
    return size, rss


def test_pages_that_are_not_touched_are_not_read(tmp_path: Path) -> None:
    rows, dim = 64_000, 256
    table = TableConfig("wide", dim, placement="table")
    shard, store = TableShard([table], seed=SEED, home_buckets=[2048]), Store(str(tmp_path))
    shard.slots(torch.arange(rows), insert=True)
    entries = save(store, [[shard]])
    path = next(tmp_path / "tables" / entry["path"] for entry in entries if entry["path"])
    group = frozen(store, entries, [table], [2048])
    keys = torch.tensor([5, 31_000, 63_000])
    assert torch.equal(group.rows(keys), live(shard, keys))
    size, rss = resident(path)
    assert size > rows * dim * 4
    assert 0 < rss < size / 8
    group.rows(torch.arange(rows))
    assert resident(path)[1] > size * 0.9, "the pages that were touched are those of the file itself"


@pytest.mark.parametrize("where", ["missing", "truncated", "not tensors", "other tables"])
def test_a_damaged_file_is_named(tmp_path: Path, where: str) -> None:
    store = Store(str(tmp_path))
    shard = trained(1)[0][0]
    entries = save(store, [[shard]])
    path = tmp_path / "tables" / entries[0]["path"]
    data = path.read_bytes()
    if where == "missing":
        path.unlink()
    elif where == "truncated":
        path.write_bytes(data[:-1])
    elif where == "not tensors":
        path.write_bytes(b"\xff" * len(data))
    else:
        names = {f"{table}/ids": torch.zeros(1) for table in entries[0]["rows"]}
        path.write_bytes(safetensors.torch.save({**names, "free ü/rows": torch.zeros(1)}))
        entries[0]["bytes"] = path.stat().st_size
    group = frozen(store, entries, GROUPS[0], HOMES[0])
    with pytest.raises(CheckpointError, match=re.escape(entries[0]["path"])):
        group.rows(asked(shard))


def as_column(tensor: Tensor) -> Column:
    return Column("", tensor.dtype, tuple(tensor.shape), lambda: [tensor])


def test_tensors_in_another_order_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tables = [TableConfig("a", 2), TableConfig("b", 2)]
    shard = TableShard(tables)
    shard.slots(torch.cat([shard.key_space.fuse(number, torch.arange(999)) for number in (0, 1)]), insert=True)
    entries = save(store, [[shard]])
    path = tmp_path / "tables" / entries[0]["path"]
    tensors = safetensors.torch.load(path.read_bytes())
    order = ["a/ids", "a/rows", "b/ids", "b/rows"]
    columns = [(name, as_column(tensors[name])) for name in order]
    with open(path, "wb") as file:
        entries[0].update(write_columns(file, columns))
    with pytest.raises(CheckpointError, match=r"not where they belong.*buckets-0000-0064"):
        frozen(store, entries, tables, [-1, -1]).rows(torch.arange(999))


def test_a_manifest_with_a_gap_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(1))
    with pytest.raises(CheckpointError, match="bucket 64 of table 'pages' is in 0 files"):
        frozen(store, entries[:1] + entries[2:], GROUPS[0], HOMES[0])


def test_a_loop_that_prefetches_scores_a_fitted_model_as_any_other(tmp_path: Path) -> None:
    """Ids and rows of files need no journey: there is nothing to begin early, and nothing of other rows to be met."""
    table = TableConfig("t", 2, optimizer=SparseOptimizer("sgd", 1.0))
    trained = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    store, inputs = Store(str(tmp_path)), {"f": torch.arange(4)}
    trained(inputs)["f"].sum().backward()
    trained.apply_gradients()
    expected = trained.eval()(inputs)["f"]
    entries = trained.write_rows(store, "rows", state=True)
    loaded = ShardedEmbeddingCollection([table], {"f": "t"}, collective=LocalCollective())
    loaded.prefetch(inputs)  # of rows that are then replaced
    loaded.eval().freeze(store, "rows", trained.description(), entries, "fingerprint")
    for stale_rows in (False, True):
        loaded.prefetch(inputs, stale_rows=stale_rows)
        assert torch.equal(loaded(inputs)["f"], expected)
    with pytest.raises(ConfigurationError, match="a feature is missing"):
        loaded.prefetch({})
    assert loaded.steps == 1
    # What the shards of a collection say and write is not what files hold; a checkpoint gives rows to train again.
    for use in (lambda: loaded.shards, lambda: loaded.write_rows(store, "other", state=False)):
        with pytest.raises(ConfigurationError, match=r"mapped files, which are only read.*Hint: .*read_rows"):
            use()
    loaded.read_rows(store, "rows", trained.description(), entries)
    loaded.train()(inputs)["f"].sum().backward()
    loaded.apply_gradients()
    assert torch.equal(loaded.eval()(inputs)["f"], expected - 1)
