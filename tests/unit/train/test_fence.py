"""Ranks that their driver has lost go on for a while beside a later generation, and touch nothing of that one."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import nn

from hvdspark.artifact.tables import bind_tables
from hvdspark.artifact.weights import load_weights
from hvdspark.collectives import Collective, LocalCollective, ThreadedCollective, run_threaded
from hvdspark.embedding import ShardedEmbeddingCollection, TableConfig
from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from hvdspark.train.best_epoch import BestEpoch
from hvdspark.train.checkpoint import Checkpoints
from hvdspark.train.fence import FILE, Fence
from hvdspark.train.train_progress import TrainProgress

RUN = "runs/run-1"
# Of what threads of both ranks write and delete in one save.
BOUNDARIES = [number if number in (2, 5, 9) else pytest.param(number, marks=pytest.mark.slow) for number in range(11)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = ShardedEmbeddingCollection([TableConfig("ids", 4)], {"id": "ids"})
        self.out = nn.Linear(4, 1)


class Rank:
    """Of one generation, which says by its numbers whose they are."""

    def __init__(self, store: Store, collective: Collective, generation: int) -> None:
        self.module, self.number, self._generation = Net(), collective.rank, generation
        bind_tables(self.module, collective)
        self.optimizer = torch.optim.SGD(self.module.out.parameters(), 0.1)
        self.checkpoints = Checkpoints(store, "run-1", collective, generation)

    def train(self, epoch: int) -> None:
        """An epoch of all 200 rows."""
        self.module.tables({"id": torch.arange(200)}).popitem()[1].sum().backward()
        self.module.tables.apply_gradients()
        with torch.no_grad():
            self.module.out.weight.fill_(10 * epoch + self._generation)

    def save(self, epoch: int) -> None:
        self.train(epoch)
        assert self.checkpoints.settle() is None
        self.checkpoints.begin(self.module, self.optimizer, progress(epoch))

    def whose(self) -> float:
        """10 * epoch + generation."""
        return self.module.out.weight[0, 0].item()


def progress(epoch: int) -> TrainProgress:
    rows = [{"epoch": number, "train_loss": 1.0} for number in range(epoch + 1)]
    return TrainProgress(BestEpoch("train_loss", 0, None, epoch, 0), epoch + 1, epoch, rows)


def on_two(store: Store, generation: int, act: Callable[[Rank], None]) -> None:
    """Have two ranks of a generation act, behind what they resume."""

    def body(collective: ThreadedCollective) -> None:
        rank = Rank(store, collective, generation)
        if generation:
            rank.checkpoints.resume(rank.module, rank.optimizer)
        else:
            rank.checkpoints.clear()
        act(rank)

    run_threaded(2, body, timeout_s=20)


def resumed(store: Store) -> tuple[float, tuple[str, ...]]:
    """Whose newest checkpoint it is, with all its rows, and what is said of others."""
    rank = Rank(store, LocalCollective(), 99)
    found, warnings = rank.checkpoints.resume(rank.module, rank.optimizer)
    assert found is not None
    assert len(rank.module.tables.shards[0].export(0)["ids"]) == 200
    return rank.whose(), warnings


def whose_epoch(store: Store, epoch: int) -> float:
    module = Net()
    load_weights(store, f"{RUN}/checkpoints/epoch-{epoch:05d}", module)
    return module.out.weight[0, 0].item()


def saved(*epochs: int) -> Callable[[Rank], None]:
    def act(rank: Rank) -> None:
        for epoch in epochs:
            rank.save(epoch)
        assert rank.checkpoints.settle() is None

    return act


class Interrupted:
    """Something happens once, before this file is written or deleted by a thread that writes checkpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, happens: Callable[[], None]) -> None:
        self._at, self._happens, self._lock = at, happens, threading.Lock()
        self.count, self.struck, self.watching = 0, False, False
        write, delete = Store.open_write, Store.delete

        @contextlib.contextmanager
        def open_write(store: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
            self._next(path)
            with write(store, path, **options) as file:
                yield file

        def deleted(store: Store, path: str) -> None:
            self._next(path)
            delete(store, path)

        monkeypatch.setattr(Store, "open_write", open_write)
        monkeypatch.setattr(Store, "delete", deleted)

    def _next(self, path: str) -> None:
        if not self.watching or "/buckets-" in path or threading.current_thread().name != "hvdspark-checkpoint":
            return
        with self._lock:
            self.count += 1
            strikes = self.count > self._at and not self.struck
            self.struck = self.struck or strikes
        if strikes:
            self.watching = False  # what happens writes, too
            self._happens()
            self.watching = True


def test_a_generation_that_is_over_commits_and_deletes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def old(rank: Rank) -> None:
        saved(0, 1)(rank)
        if rank.number == 0:
            on_two(store, 1, saved(2, 3))
        for epoch in (2, 3):
            rank.train(epoch)
            rank.checkpoints.begin(rank.module, rank.optimizer, progress(epoch))
            assert "generation 0 of the run may write nothing more" in str(rank.checkpoints.settle())
        with pytest.raises(CheckpointError, match="may write nothing more"):
            rank.checkpoints.write_model(rank.module, {})

    on_two(store, 0, old)
    assert resumed(store) == (31, ())
    assert whose_epoch(store, 2) == 21
    assert not store.exists(f"{RUN}/model")


@pytest.mark.parametrize("later", [pytest.param((2,), marks=pytest.mark.slow), (2, 3, 4)])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_later_generation_may_begin_at_every_boundary_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boundary: int, later: tuple[int, ...]
) -> None:
    """The host of the old rank 0 stands still in the middle of a save, while the new ones write the same place."""
    store = Store(str(tmp_path))
    interrupted = Interrupted(monkeypatch, boundary, lambda: on_two(store, 1, saved(*later)))

    def old(rank: Rank) -> None:
        saved(0, 1)(rank)
        interrupted.watching = True
        rank.save(2)
        rank.checkpoints.settle()

    on_two(store, 0, old)
    interrupted.watching = False
    assert interrupted.struck, f"{interrupted.count} boundaries"
    whose, warnings = resumed(store)
    if later == (2,):
        # What the old rank was about to write or delete when it stopped is the new one's file now: that is seen.
        assert (whose, warnings) in [(20, ()), (21, ()), (10, ())] or (whose == 10 and "damaged" in warnings[0])
        return
    assert (whose, warnings) == (41, ())
    store.delete(f"{RUN}/checkpoints/epoch-00004")
    assert resumed(store) == (31, ())


def test_one_that_begins_too_late_does_not_begin(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    on_two(store, 0, saved(0))
    on_two(store, 2, saved(1, 2))
    for generation in (0, 1):
        with pytest.raises(CheckpointError, match=f"generation {generation} of the run may write nothing more"):
            on_two(store, generation, saved(3))
    assert resumed(store) == (22, ())


def test_a_mark_that_an_earlier_generation_leaves_late_gives_way(tmp_path: Path) -> None:
    store, early = Store(str(tmp_path)), []
    on_two(store, 0, saved(0))

    def live(rank: Rank) -> None:
        saved(1)(rank)
        if rank.number == 0:
            early.append(Fence(store, RUN, 0, "late"))
            store.write_text(f"{RUN}/{FILE}", json.dumps({"generation": 0, "token": "late"}))
        saved(2)(rank)

    on_two(store, 1, live)
    assert resumed(store) == (21, ())
    with pytest.raises(CheckpointError, match="generation 0 of the run may write nothing more"):
        early[0].check()


def test_of_two_with_one_number_the_last_has_the_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    on_two(store, 0, saved(0))

    def first(rank: Rank) -> None:
        if rank.number == 0:
            on_two(store, 1, saved(1))
        rank.train(1)
        rank.checkpoints.begin(rank.module, rank.optimizer, progress(1))
        assert rank.checkpoints.settle() is not None

    on_two(store, 1, first)
    assert resumed(store) == (11, ())


@pytest.mark.parametrize("text", ["", "[]", '{"generation": null, "token": 1}', '{"token": "x"}', "nonsense"])
def test_a_damaged_mark_is_written_again_and_ends_no_generation(tmp_path: Path, text: str) -> None:
    store = Store(str(tmp_path))

    def damaged(rank: Rank) -> None:
        saved(0)(rank)
        if rank.number == 0:
            store.write_text(f"{RUN}/{FILE}", text)
        saved(1)(rank)

    on_two(store, 0, damaged)
    assert store.read_json(f"{RUN}/{FILE}")["generation"] == 0
    store.write_text(f"{RUN}/{FILE}", text)
    on_two(store, 1, saved(2))
    assert resumed(store) == (21, ())


def test_where_the_mark_is_damaged_the_later_of_two_generations_has_the_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    earlier, later = Fence(store, RUN, 0, "earlier"), Fence(store, RUN, 1, "later")
    earlier.begin()
    later.begin()
    store.write_text(f"{RUN}/{FILE}", "nonsense")
    earlier.check()  # nobody can know yet
    later.check()
    with pytest.raises(CheckpointError, match="generation 1"):
        earlier.check()
