"""Whatever is left of a save that was cut short or damaged: ranks go on from the newest checkpoint that is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from hvdspark.train import checkpoint
from hvdspark.train.places import Place, name_of
from tests.unit.train.saving_ranks import PLACES, ROOT, Rank, State, resumed, same


class Watched:
    """Copies a store behind each thing that is written or deleted in it: what a host leaves that dies there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, copies: Path) -> None:
        self.count, self.watching, self._lock = 0, False, threading.Lock()
        write, delete = Store.open_write, Store.delete

        def copy(path: str) -> None:
            if not self.watching or ("buckets-" in path and not any(first in path for first in ("-0000-", "-3072-"))):
                return
            with self._lock:  # no file is changed in place, so links are copies
                left_out = shutil.ignore_patterns("*.tmp")
                shutil.copytree(folder, copies / f"{self.count:03d}", ignore=left_out, copy_function=os.link)
                self.count += 1

        @contextlib.contextmanager
        def open_write(store: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
            copy(path)
            with write(store, path, **options) as file:
                yield file
            copy(path)

        def deleted(store: Store, path: str) -> None:
            delete(store, path)
            copy(path)

        monkeypatch.setattr(Store, "open_write", open_write)
        monkeypatch.setattr(Store, "delete", deleted)


def written(store: Store, watched: Watched | None = None, last: int = len(PLACES)) -> dict[int, list[State]]:
    """Train two ranks and save; what they had at each place. The last save is watched."""

    def body(collective: ThreadedCollective) -> dict[int, State]:
        rank, states = Rank(store, collective), {}
        for step in range(1, PLACES[last - 1] + 1):
            rank.step(step)
            if step in PLACES:
                assert rank.checkpoints.settle() is None
                if watched is not None and collective.rank == 0:
                    watched.watching = step == PLACES[last - 1]
                collective.allreduce_sum(torch.zeros(1), "watched")
                rank.save(step)
                states[step] = rank.state()
        assert rank.checkpoints.settle() is None
        return states

    found = run_threaded(2, body, timeout_s=60)
    return {step: [states[step] for states in found] for step in PLACES[:last]}


@pytest.mark.parametrize("last", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_host_may_die_at_every_boundary_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    store = Store(str(tmp_path / "store"))
    with monkeypatch.context() as patch:
        watched = Watched(patch, tmp_path / "store", tmp_path / "copies")
        expected = written(store, watched, last)
    assert watched.count >= 10
    places = []
    for number in range(watched.count):
        place, warnings, states = resumed(Store(str(tmp_path / "copies" / f"{number:03d}")), 1 + number % 3)
        assert warnings == ()
        assert same(states, expected[place]), (number, place)
        places.append(place)
    assert places == sorted(places)
    assert set(places) == set(PLACES[last - 2 : last])


def test_what_is_left_of_a_lost_save_is_deleted_behind_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    with monkeypatch.context() as patch:
        watched = Watched(patch, tmp_path / "store", tmp_path / "copies")
        written(store, watched, 3)
    cut = Store(str(tmp_path / "copies" / f"{watched.count // 2:03d}"))

    def go_on(collective: ThreadedCollective) -> None:
        rank = Rank(cut, collective)
        rank.checkpoints.resume(rank.module, rank.optimizer)
        for step in (7, 9, 11, 13):
            rank.step(step)
            rank.save(step)
            assert rank.checkpoints.settle() is None

    run_threaded(2, go_on, timeout_s=60)
    assert [name for name in cut.list(ROOT) if name != "rows"] == [
        f"epoch-00000-step-{step:08d}" for step in (7, 11, 13)
    ]
    named = {
        file["path"].split("/")[0]
        for name in cut.list(ROOT)
        if name != "rows"
        for table in (cut.committed(f"{ROOT}/{name}") or {})["tables"]
        for file in table["files"]
        if file["path"] is not None
    }
    assert cut.list(f"{ROOT}/rows/tables/0") == sorted(named)


@pytest.mark.parametrize("how", ["flip", *(pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "gone"))])
def test_damage_of_any_file_of_the_newest_is_passed_over(tmp_path: Path, how: str) -> None:
    store = Store(str(tmp_path / "store"))
    expected = written(store)
    newest = store.committed(f"{ROOT}/epoch-00000-step-00000008")
    assert newest is not None
    rows = [file for file in newest["tables"][0]["files"] if file["path"] is not None]
    assert {file.get("delta", 0) for file in rows} == {0, 1, 2}
    paths = [f"{ROOT}/epoch-00000-step-00000008/{name}" for name in (*newest["files"], "manifest.json")]
    of_deltas = {file.get("delta", 0): f"{ROOT}/rows/tables/0/{file['path']}" for file in rows}
    for path, falls_to in [*((path, 6) for path in paths), (of_deltas[2], 6), (of_deltas[1], 2), (of_deltas[0], 2)]:
        shutil.copytree(tmp_path / "store", tmp_path / "damaged")
        damaged = Store(str(tmp_path / "damaged"))
        file = damaged.local_path(path)
        assert file is not None
        content = bytearray(file.read_bytes())
        if how == "gone":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
        place, warnings, states = resumed(damaged, 2)
        if path.endswith("manifest.json") and how == "flip" and place == 8:
            continue  # a letter of what nobody reads
        assert place == falls_to, path
        assert same(states, expected[place])
        assert bool(warnings) != (path.endswith("manifest.json") and how == "gone")
        assert all("passed over a damaged checkpoint" in text for text in warnings)
        shutil.rmtree(tmp_path / "damaged")


def test_ranks_that_died_at_different_saves_go_on_from_the_last_that_all_wrote(tmp_path: Path) -> None:
    """One rank has written its part of the newest place, the other died before: nobody has committed it."""
    store = Store(str(tmp_path / "store"))
    expected = written(store, last=3)
    manifest = store.local_path(f"{ROOT}/epoch-00000-step-00000006/manifest.json")
    assert manifest is not None
    manifest.unlink()
    place, warnings, states = resumed(store, 2)
    assert (place, warnings) == (4, ())
    assert same(states, expected[4])


def test_with_no_whole_checkpoint_left_every_rank_says_so(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    written(store, last=1)
    for path in (tmp_path / "store").rglob("optimizer.json"):
        path.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="every checkpoint of the run is damaged"):
        resumed(store, 2)


@pytest.mark.parametrize("spare", [0, 30_000])
def test_without_memory_to_spare_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int) -> None:
    monkeypatch.setattr(checkpoint, "spare_bytes", lambda: spare)
    store = Store(str(tmp_path / "store"))
    expected = written(store)
    place, warnings, states = resumed(store, 3)
    assert (place, warnings) == (8, ())
    assert same(states, expected[8])


def test_where_the_newest_is_damaged_at_once_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    drop_others = checkpoint.drop_others

    def damaged_before(store: Store, root: str, newest: Place, *known: Any) -> None:
        if newest[1] == 4:
            store.write_text(f"{root}/{name_of(newest)}/manifest.json", "{")
        drop_others(store, root, newest, *known)

    monkeypatch.setattr(checkpoint, "drop_others", damaged_before)

    def body(collective: ThreadedCollective) -> None:
        rank = Rank(store, collective)
        for step in (1, 2, 3, 4):
            rank.step(step)
            rank.save(step)
            assert rank.checkpoints.settle() is None

    run_threaded(2, body, timeout_s=60)
    place, warnings, _ = resumed(store, 1)
    assert (place, len(warnings)) == (3, 1)
