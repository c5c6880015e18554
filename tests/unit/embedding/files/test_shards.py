"""Sharded tables in the store: saved at one world size, loaded at another, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.config import OPTIMIZERS, TableConfig
from hvdspark.embedding.files.entries import file_of_buckets, parse_entries
from hvdspark.embedding.files.shards import FILE_BUCKETS, file_ranges, read_shards, write_shards
from hvdspark.embedding.ids.hashing import BUCKETS, bucket_range
from hvdspark.embedding.rows.shard import TableShard
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store
from tests.unit.embedding.shards import GROUPS, assert_same, new_shards, train, trained, with_optimizer

STEPS = 5
Entries = list[dict[str, Any]]


def save(store: Store, ranks: list[list[TableShard]], *, state: bool = True, directory: str = "tables") -> Entries:
    entries = [entry for shards in ranks for entry in write_shards(store, directory, shards, state=state)]
    return json.loads(json.dumps(entries))


def load(
    store: Store, entries: Entries, world_size: int, groups: list[list[TableConfig]] = GROUPS
) -> list[list[TableShard]]:
    ranks = [new_shards(rank, world_size, groups) for rank in range(world_size)]
    for shards in ranks:
        read_shards(store, "tables", entries, shards, steps=STEPS)
    return ranks


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_at_four_loaded_at_another_world_size(tmp_path: Path, name: str) -> None:
    groups, store = with_optimizer(name), Store(str(tmp_path))
    saved = trained(4, groups)
    entries = save(store, saved)
    loaded = [load(store, entries, world_size, groups) for world_size in (1, 2, 3, 8)]
    for ranks in loaded:
        assert_same(saved, ranks)
    # two more steps, an eviction among them, equal those of the run that was never interrupted
    for ranks in (saved, *loaded):
        train(ranks, [STEPS + 1, STEPS + 2])
    for ranks in loaded:
        assert_same(saved, ranks)


def test_every_kind_of_row_was_looked_at() -> None:
    ranks = trained()
    for group, tables in enumerate(GROUPS):
        for place, table in enumerate(tables):
            exported = [shards[group].export(place) for shards in ranks]
            assert sum(len(part["ids"]) for part in exported) > 50
            waiting = torch.cat([part["waiting_ages"] for part in exported]).unique().tolist()
            assert waiting == ([0, 1] if table.admission.min_count > 1 else [])


def test_new_rows_of_a_resumed_run_are_as_old_as_they_would_be(tmp_path: Path) -> None:
    """A row that was met but not updated remembers the step before; after loading, too."""
    store, saved = Store(str(tmp_path)), trained(1)
    loaded = load(store, save(store, saved), 1)
    for shard in (saved[0][0], loaded[0][0]):
        shard.slots(shard.key_space.fuse(3, torch.tensor([5])), insert=True)
        exported = shard.export(3)
        assert exported["last_step"][exported["ids"] == 5].tolist() == [STEPS]


def test_any_store(store: Store) -> None:
    saved = trained(2)
    assert_same(saved, load(store, save(store, saved), 3))


def test_the_files_are_safetensors(tmp_path: Path) -> None:
    entries = save(Store(str(tmp_path)), trained())
    ids: dict[str, list[int]] = {table.name: [] for tables in GROUPS for table in tables}
    for entry in entries:
        assert entry["path"] == f"{entry['group']}/buckets-{entry['first']:04d}-{entry['stop']:04d}.safetensors"
        tensors = safetensors.torch.load_file(tmp_path / "tables" / entry["path"])
        for table, rows in entry["rows"].items():
            part = tensors[f"{table}/ids"]
            assert len(part) == len(tensors[f"{table}/rows"]) == len(tensors[f"{table}/last_step"]) == rows
            assert (part.diff() > 0).all(), "ascending"
            ids[table] += part.tolist()
    for tables, group in zip(GROUPS, trained(1)[0], strict=True):
        for place, table in enumerate(tables):
            assert sorted(ids[table.name]) == group.export(place)["ids"].tolist()


def test_for_scoring_there_are_ids_counts_and_rows_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(2), state=False)
    tensors = safetensors.torch.load_file(tmp_path / "tables" / entries[0]["path"])
    assert {name.rpartition("/")[2] for name in tensors} == {"ids", "counts", "rows"}
    with pytest.raises(CheckpointError, match=r"written for scoring.*Hint: load a checkpoint"):
        load(store, entries, 2)


def test_files_of_checkpoints_leave_the_cache_when_they_are_on_the_disk_and_those_of_models_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, fsync, advise = list[str](), os.fsync, os.posix_fadvise

    def synced(file: int) -> None:
        fsync(file)
        done.append("on the disk")

    def advised(file: int, start: int, size: int, advice: int) -> None:
        advise(file, start, size, advice)
        done.append(f"{start}, {size}: {advice}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "posix_fadvise", advised)
    leaves = f"0, 0: {os.POSIX_FADV_DONTNEED}"
    for state, of_a_file in ((True, ["on the disk", leaves]), (False, ["on the disk"])):
        done.clear()
        entries = save(Store(str(tmp_path)), trained(2), state=state, directory=f"{state}")
        assert done == of_a_file * sum(entry["path"] is not None for entry in entries)


def test_buckets_without_rows_have_an_entry_and_no_file(tmp_path: Path) -> None:
    store, shards = Store(str(tmp_path)), new_shards()
    entries = save(store, [shards])
    assert [entry["path"] for entry in entries] == [None] * (2 * BUCKETS // FILE_BUCKETS)
    assert not (tmp_path / "tables").exists()
    assert_same([shards], load(store, entries, 2))
    shard = shards[0]
    shard.slots(shard.key_space.fuse(1, torch.tensor([9])), insert=True)  # waits for admission
    assert [entry["path"] for entry in save(store, [shards], state=False)] == [None] * len(entries)
    entries = save(store, [shards])
    assert sum(entry["path"] is not None for entry in entries) == 1
    assert_same([shards], load(store, entries, 2))


def test_a_rank_opens_only_files_with_its_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained(4))
    opened: list[str] = []
    open_read = Store.open_read
    monkeypatch.setattr(Store, "open_read", lambda self, path: (opened.append(path), open_read(self, path))[1])
    for rank in range(3):
        opened.clear()
        read_shards(store, "tables", entries, new_shards(rank, 3), steps=STEPS)
        first, stop = bucket_range(rank, 3)
        mine = [entry for entry in entries if entry["first"] < stop and first < entry["stop"]]
        assert sorted(opened) == sorted(f"tables/{entry['path']}" for entry in mine)
        assert len(opened) < len(entries) / 2


def test_files_that_no_entry_names_do_not_exist(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save(store, trained(3, steps=2))
    saved = trained(4)
    entries = save(store, saved)
    assert len(list((tmp_path / "tables").rglob("*.safetensors"))) > len(entries)
    assert_same(saved, load(store, entries, 2))


def test_groups_and_order_may_be_others(tmp_path: Path) -> None:
    store, saved = Store(str(tmp_path)), trained(2)
    entries = save(store, saved)
    other = [GROUPS[1], [GROUPS[0][3], GROUPS[0][0]], [GROUPS[0][2], GROUPS[0][1]]]
    (loaded,) = load(store, entries, 1, other)
    assert torch.equal(loaded[0].export(0)["rows"], trained(1)[0][1].export(0)["rows"])
    assert torch.equal(loaded[1].export(1)["ids"], trained(1)[0][0].export(0)["ids"])
    assert torch.equal(loaded[2].export(0)["rows"], trained(1)[0][0].export(2)["rows"])


def damaged(tmp_path: Path, entries: Entries) -> Path:
    return tmp_path / "tables" / entries[70]["path"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained())
    damaged(tmp_path, entries).unlink()
    with pytest.raises(CheckpointError, match=rf"cannot be read.*{entries[70]['path']}.*Hint"):
        load(store, entries, 1)


@pytest.mark.parametrize("how", ["truncated", "longer", "flipped"])
def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, how: str) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained())
    path = damaged(tmp_path, entries)
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1] ^= 1
    path.write_bytes({"truncated": data[:-1], "longer": data + b"x", "flipped": data}[how])
    alone = [{**entry, "path": entry["path"] if number == 70 else None} for number, entry in enumerate(entries)]
    shards = new_shards()
    with pytest.raises(CheckpointError, match=rf"damaged.*{entries[70]['path']}.*Hint: use another checkpoint"):
        read_shards(store, "tables", alone, shards, steps=STEPS)
    assert sum(shards[0].row_counts()) == 0


def test_buckets_without_an_entry_are_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    entries = save(store, trained())
    gap = entries[:7] + entries[8:]
    with pytest.raises(
        CheckpointError, match=r"bucket 448 of table 'pages' is in 0 files .*in tables\). Hint: entries"
    ):
        load(store, gap, 1)
    read_shards(store, "tables", gap, new_shards(3, 4), steps=STEPS)  # not this rank's buckets
    with pytest.raises(CheckpointError, match="bucket 0 of table 'pages' is in 2 files"):
        load(store, [entries[0], *entries], 2)


@pytest.mark.parametrize("broken", [{"first": 5000}, {"stop": 0}, {"first": "a"}, {"unknown": 1}])
def test_a_damaged_list_is_refused(tmp_path: Path, broken: dict[str, Any]) -> None:
    entries = save(Store(str(tmp_path)), [new_shards()])
    with pytest.raises(CheckpointError, match="list of table files in the manifest is damaged"):
        parse_entries([{**entries[0], **broken}], "here")
    with pytest.raises(CheckpointError, match="damaged"):
        parse_entries([{"path": "x"}], "here")


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(StoreError, match="tables/0"):
        save(Store(str(tmp_path)), trained(1))


def test_a_failed_write_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = trained(1)[0]
    monkeypatch.setattr(shards[0].memory.rows, "take", lambda slots: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        write_shards(Store(str(tmp_path)), "tables", shards, state=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("bounded", [True, False])
def test_memory_is_that_of_one_file(tmp_path: Path, bounded: bool) -> None:
    rows, dim, store = 100_000, 96, Store(str(tmp_path))
    table = TableConfig("t", dim, num_embeddings=rows if bounded else None)
    shard, loaded = TableShard([table]), TableShard([table])
    shard.slots(torch.arange(rows), insert=True)
    if not bounded:
        loaded.slots(torch.arange(rows), insert=True)  # so that nothing grows below
    tracemalloc.start()
    try:
        entries = write_shards(store, "tables", [shard], state=True)
        writing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        read_shards(store, "tables", entries, [loaded], steps=0)
        reading = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    total = rows * dim * 4
    assert sum(entry["bytes"] for entry in entries) > total
    assert writing < total / 8
    assert reading < total / 8


@given(st.integers(1, 6000))
def test_every_bucket_is_in_one_file(world_size: int) -> None:
    ranges = [cut for rank in range(world_size) for cut in file_ranges(*bucket_range(rank, world_size))]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == BUCKETS
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert all(first < stop for first, stop in ranges)
    assert all(first // FILE_BUCKETS == (stop - 1) // FILE_BUCKETS for first, stop in ranges)
    assert len(ranges) < BUCKETS // FILE_BUCKETS + world_size


@given(st.integers(1, 70), st.integers(1, 70))
def test_resharding_finds_every_bucket_once(old: int, new: int) -> None:
    entries = [
        {"path": f"{first}", "group": 0, "first": first, "stop": stop, "rows": {"t": 1}, "state": True}
        for rank in range(old)
        for first, stop in file_ranges(*bucket_range(rank, old))
    ]
    files = parse_entries(entries, "here")
    bounds = np.array([(file.first, file.stop) for file in files])
    for rank in range(new):
        first, stop = bucket_range(rank, new)
        numbers, buckets = file_of_buckets(files, "t", first, stop, "here"), np.arange(first, stop)
        assert (bounds[numbers, 0] <= buckets).all()
        assert (buckets < bounds[numbers, 1]).all()


def test_there_may_be_more_files_than_16_bits_count() -> None:
    others = [
        {"path": "x", "group": group, "first": 0, "stop": BUCKETS, "rows": {f"t{group}": 1}, "state": True}
        for group in range(33_000)
    ]
    files = parse_entries([*others, {**others[0], "rows": {"last": 1}}], "here")
    assert set(file_of_buckets(files, "last", 0, BUCKETS, "here").tolist()) == {33_000}


@given(st.sets(st.integers(0, 2**40), min_size=1, max_size=300), st.integers(1, 9), st.integers(1, 9))
def test_resharding_keeps_every_row(ids: set[int], old: int, new: int) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    table = TableConfig("t", 2)
    keys = torch.tensor(sorted(ids))
    ranks = [[TableShard([table], rank=rank, world_size=old)] for rank in range(old)]
    for rank, (shard,) in enumerate(ranks):
        shard.slots(keys[shard.key_space.owners(keys, old) == rank], insert=True)
    loaded = load(store, save(store, ranks), new, [[table]])
    assert sum(shard.row_counts()[0] for (shard,) in loaded) == len(ids)
    assert_same(ranks, loaded)


def test_a_large_world_reads_little_more_than_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of many rows have few buckets: what a rank reads of others' rows stays below two files for each group."""
    store, table = Store(str(tmp_path)), TableConfig("t", 16)
    shard = TableShard([table])
    keys = torch.arange(100_000)
    shard.slots(keys, insert=True)
    monkeypatch.setattr("hvdspark.embedding.files.shards.FILE_BYTES", 50_000, raising=False)
    entries = save(store, [[shard]])
    assert max(entry["bytes"] for entry in entries) < 2 * 50_000
    read: list[int] = []
    open_read, sizes = Store.open_read, {f"tables/{entry['path']}": entry["bytes"] for entry in entries}
    monkeypatch.setattr(Store, "open_read", lambda self, path: (read.append(sizes[path]), open_read(self, path))[1])
    total = sum(sizes.values())
    for rank in (0, 101, 255):
        read.clear()
        mine = TableShard([table], rank=rank, world_size=256)
        read_shards(store, "tables", entries, [mine], steps=0)
        assert mine.row_counts()[0] == int((shard.key_space.owners(keys, 256) == rank).sum())
        assert sum(read) < total / 256 + 2 * 50_000


@pytest.mark.slow
def test_many_tables_of_a_group_are_read_in_time_that_is_proportional_to_them(tmp_path: Path) -> None:
    store, tables = Store(str(tmp_path)), [TableConfig(f"t{number}", 1) for number in range(120)]
    (shard,) = [TableShard(tables)]
    keys = torch.cat([shard.key_space.fuse(number, torch.tensor([7])) for number in range(120)])
    shard.slots(keys, insert=True)
    entries = save(store, [[shard]])
    asked = 0

    class Name(str):
        """Counts how often it is compared with the name of a table."""

        def __eq__(self, other: object) -> bool:
            nonlocal asked
            asked += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [TableConfig(Name(f"t{number}"), 1) for number in range(120)]
    loaded = TableShard(names)
    read_shards(store, "tables", entries, [loaded], steps=0)
    assert loaded.row_counts() == [1] * 120
    assert asked < 10 * 120 * len(entries)
