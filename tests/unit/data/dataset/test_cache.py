"""Who holds a dataset, when it is deleted, and who cleans up after a process that was killed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hvdspark.data.dataset import cache, leases
from hvdspark.errors import DataError, StoreError
from hvdspark.specs import DatasetSpec, RowGroups
from hvdspark.store import Store

EMPTY = DatasetSpec("", (), RowGroups.of())


class Owner:
    """Something whose life a dataset can be tied to."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    others = list(cache._entries)  # datasets of DataFrames that other tests still hold
    yield Store(str(tmp_path))
    assert not [entry for entry in cache._entries if entry not in others]


def obtain(store: Store, holder: Any, plan: str = "plan", write: Any = None) -> cache.Entry:
    def write_file(path: str) -> DatasetSpec:
        store.write_text(f"{path}/data/part", "rows")
        return EMPTY

    return cache.obtain(store, "key", plan, lambda other: other == plan, holder, write or write_file)


def test_shared_while_held_and_deleted_with_the_last(store: Store) -> None:
    first, second, other = obtain(store, 1), obtain(store, 2), obtain(store, 3, plan="other")
    assert first is second
    assert other is not first
    cache.release(first, 1)
    cache.release(first, 1)
    assert store.exists(f"{first.path}/data/part")
    cache.release(first, 2)
    assert store.list("datasets") == [other.path.split("/")[1]]
    cache.release(other, 3)
    assert store.list("datasets") == []


def test_what_is_computed_from_a_dataset_is_kept_as_long_as_it_lives(store: Store) -> None:
    calls: list[str] = []

    def found(path: str, key: str) -> int:
        return cache.kept_with(store, path, key, lambda: calls.append(key) or len(calls))  # type: ignore[func-returns-value]

    entry = obtain(store, 1)
    assert [found(entry.path, key) for key in ("a", "b", "a", "b")] == [1, 2, 1, 2]
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(found(entry.path, "c"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [3] * 4, "of several threads one computes"
    cache.release(entry, 1)
    assert [found(entry.path, "a"), found(entry.path, "a")] == [4, 5], "nobody holds it"


def test_an_owner_may_hold_no_more_than_the_newest(store: Store) -> None:
    owner = Owner()
    first, second = obtain(store, 1), obtain(store, 2, plan="other")
    for entry, holder in ((first, 1), (second, 2), (second, 2)):
        cache.hold_while_alive(entry, owner, newest_only=True)
        cache.release(entry, holder)
    assert store.list("datasets") == [second.path.split("/")[1]]
    del owner
    gc.collect()
    assert store.list("datasets") == []


def test_held_while_its_owner_lives(store: Store) -> None:
    owner = Owner()
    entry = obtain(store, 1)
    cache.hold_while_alive(entry, owner)
    cache.hold_while_alive(entry, owner)
    cache.release(entry, 1)
    assert obtain(store, 2) is entry
    cache.release(entry, 2)
    del owner
    gc.collect()
    assert store.list("datasets") == []


def test_a_failed_write_leaves_nothing_and_is_not_shared(store: Store) -> None:
    def fail(path: str) -> DatasetSpec:
        store.write_text(f"{path}/data/part", "half")
        raise DataError("bad rows")

    for _ in range(2):
        with pytest.raises(DataError, match="bad rows"):
            obtain(store, 1, write=fail)
        assert store.list("datasets") == []
    cache.release(obtain(store, 1), 1)


def test_tasks_that_write_on_after_the_failure_are_cleaned_up_later(store: Store) -> None:
    paths: list[str] = []

    def fail(path: str) -> DatasetSpec:
        paths.append(path)
        raise DataError("bad rows")

    with pytest.raises(DataError):
        obtain(store, 1, write=fail)
    store.write_text(f"{paths[0]}/data/_temporary/part", "late")
    cache.collect_leftovers(store)
    assert store.list("datasets") == []


def run_while_one_writes(threads: list[threading.Thread], writing: threading.Event, go_on: threading.Event) -> None:
    """The others start while the first one writes, which then goes on."""
    threads[0].start()
    assert writing.wait(30)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join(30)


def test_threads_wait_for_the_writer(store: Store) -> None:
    writing, go_on, writes = threading.Event(), threading.Event(), []

    def slow(path: str) -> DatasetSpec:
        writing.set()
        assert go_on.wait(30)
        writes.append(path)
        return EMPTY

    found: list[cache.Entry] = []
    threads = [threading.Thread(target=lambda: found.append(obtain(store, object(), write=slow))) for _ in range(4)]
    run_while_one_writes(threads, writing, go_on)
    assert len(writes) == 1
    assert len(set(map(id, found))) == 1
    for holder in list(found[0].holders):
        cache.release(found[0], holder)


def test_when_the_writer_fails_the_others_try_themselves(store: Store) -> None:
    writing, go_on, turns = threading.Event(), threading.Event(), iter(range(9))

    def write(path: str) -> DatasetSpec:
        if next(turns):
            return EMPTY
        writing.set()
        assert go_on.wait(30)
        raise DataError("the first fails")

    outcome: list[Any] = []

    def body(holder: int) -> None:
        try:
            outcome.append(obtain(store, holder, write=write))
        except DataError as error:
            outcome.append(error)

    threads = [threading.Thread(target=body, args=(holder,)) for holder in range(3)]
    run_while_one_writes(threads, writing, go_on)
    (entry,) = {item for item in outcome if isinstance(item, cache.Entry)}
    assert len([item for item in outcome if isinstance(item, DataError)]) == 1
    for holder in list(entry.holders):
        cache.release(entry, holder)


CHILD = """
import sys, time
from hvdspark.data.dataset import cache
from hvdspark.specs import DatasetSpec, RowGroups
from hvdspark.store import Store
store = Store(sys.argv[1])
def write(path):
    store.write_text(path + "/data/part", "rows")
    return DatasetSpec("", (), RowGroups.of())
cache.obtain(store, "key", "plan", lambda other: True, "holder", write)
print("written", flush=True)
if sys.argv[2] == "stay":
    time.sleep(60)
"""


def child(store: Store, what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", CHILD, store.uri, what], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_deleted_when_the_interpreter_exits(store: Store) -> None:
    with child(store, "exit") as process:
        assert process.wait(30) == 0
    assert store.list("datasets") == []


def test_what_a_killed_process_left_is_collected_and_what_a_living_one_uses_is_not(store: Store) -> None:
    with child(store, "stay") as process:
        cache.collect_leftovers(store)
        assert len(store.list("datasets")) == 1, "its process is alive"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert len(store.list("datasets")) == 1
    cache.collect_leftovers(store)
    assert store.list("datasets") == []


@pytest.mark.parametrize(
    ("change", "abandoned"),
    [
        ({}, False),
        ({"started": 1.0}, True),  # the process id was given out again
        ({"pid": 2**22 + 1}, True),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "used": time.time() - 13 * 24 * 3600}, False),
        ({"host": "elsewhere", "used": time.time() - 15 * 24 * 3600}, True),
    ],
)
def test_leases(store: Store, change: dict[str, Any], abandoned: bool) -> None:
    entry = obtain(store, 1)
    lease = json.loads(store.read_text(f"{entry.path}/lease.json"))
    store.write_text("datasets/other/data/part", "rows")
    store.write_text("datasets/other/lease.json", json.dumps(lease | change))
    cache.collect_leftovers(store)
    assert store.exists("datasets/other/data/part") is not abandoned
    assert store.exists(f"{entry.path}/data/part")
    cache.release(entry, 1)


def test_a_clock_that_is_set_abandons_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = obtain(store, 1)
    created = psutil.Process.create_time
    # psutil gives the time of boot, as the clock says it now, and the ticks since then.
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: created(process) + 90.0)
    cache.collect_leftovers(store)
    assert store.exists(f"{entry.path}/data/part")
    cache.release(entry, 1)


def test_runs_of_killed_processes_are_collected_and_finished_ones_are_not(store: Store) -> None:
    for run in ("finished", "killed", "training"):
        store.write_text(f"runs/{run}/model/weights", "numbers")
    with cache.leased(store, "runs/finished"):
        pass
    with cache.leased(store, "runs/training"):
        lease = json.loads(store.read_text("leases/training.json"))
        store.write_text("leases/killed.json", json.dumps(lease | {"pid": 2**22 + 1}))
        cache.collect_leftovers(store)
        assert store.list("runs") == ["finished", "training"]
    assert store.list("runs/finished") == ["model"]
    assert store.list("leases") == []


@pytest.mark.parametrize("named", [False, True])
def test_of_a_run_whose_driver_was_killed_behind_the_model_the_model_stays(store: Store, named: bool) -> None:
    for file in ("model/manifest.json", "checkpoints/epoch-00000/manifest.json", "initial/weights", leases.MARK):
        store.write_text(f"runs/r/{file}", "{}")
    if named:
        store.write_text("runs/r/run.json", "{}")
    store.write_text("leases/r.json", json.dumps(leases.own() | {"pid": 2**22 + 1}))
    cache.collect_leftovers(store)
    assert store.list("leases") == []
    there = store.list("runs/r")
    if named:  # a fit of its name finishes it
        assert there == ["checkpoints", leases.MARK, "initial", "model", "run.json"]
    else:
        assert there == ["model"]


def test_a_lease_that_cannot_be_deleted_does_not_cost_the_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Store, path: str) -> None:
        raise StoreError("no", value=path)

    with monkeypatch.context() as patched, cache.leased(store, "runs/r"):
        store.write_text("runs/r/model/manifest.json", "{}")
        patched.setattr(Store, "delete", refuse)
    (name,) = store.list("leases")
    lease = json.loads(store.read_text(f"leases/{name}"))
    store.write_text(f"leases/{name}", json.dumps(lease | {"pid": 2**22 + 1}))
    cache.collect_leftovers(store)
    assert store.exists("runs/r/model/manifest.json")
    assert store.list("leases") == []


def test_finished_models_are_not_looked_at(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        with cache.leased(store, f"runs/{number}"):
            store.write_text(f"runs/{number}/model/manifest.json", "{}")
    touched: list[str] = []
    for name in ("read_text", "exists", "list"):
        original = getattr(Store, name)

        def look(self: Store, path: str, original: Any = original) -> Any:
            touched.append(path)
            return original(self, path)

        monkeypatch.setattr(Store, name, look)
    cache.collect_leftovers(store)
    assert len(touched) <= 2, "two listings, however many models there are"


def test_what_is_in_use_is_renewed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = threading.Event()
    write = leases.renew

    def renew(target: Store, path: str) -> None:
        write(target, path)
        if threading.current_thread().name == "hvdspark-lease":
            renewed.set()

    monkeypatch.setattr(leases, "_RENEWAL_INTERVAL_S", 0.01)
    monkeypatch.setattr(leases, "renew", renew)
    with leases.renewed(store, "datasets/long"):
        assert renewed.wait(30)
    assert not [thread for thread in threading.enumerate() if thread.name == "hvdspark-lease"]


def test_damaged_leases_and_strangers_are_left_alone(store: Store) -> None:
    store.write_text("datasets/a/lease.json", "{")
    store.write_text("datasets/b/lease.json", "{}")
    store.write_text("datasets/c/mine", "")
    cache.collect_leftovers(store)
    assert store.list("datasets") == ["a", "b", "c"]


def test_a_forked_child_deletes_nothing(store: Store) -> None:
    entry = obtain(store, 1)
    pid = os.fork()
    if pid == 0:
        cache.release(entry, 1)
        cache._delete_all()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.exists(f"{entry.path}/data/part")
    cache.release(entry, 1)
