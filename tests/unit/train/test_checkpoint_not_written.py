"""Checkpoints that cannot be written, or copied: a warning, what is left goes, and training goes on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.errors import StoreError
from hvdspark.store import Store
from hvdspark.train import checkpoint
from hvdspark.train.checkpoint_thread import Part, Writing, Written
from tests.unit.train.saving_ranks import ROOT, Rank, resumed


def test_a_checkpoint_that_one_rank_cannot_write_is_a_warning_and_three_in_a_row_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path / "store"))
    said: list[list[str | None]] = [[], []]
    refusing = threading.Event()
    write = Store.open_write

    @contextlib.contextmanager
    def open_write(self: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
        if refusing.is_set() and "buckets-2048" in path:
            raise OSError(28, "No space left on device")
        with write(self, path, **options) as file:
            yield file

    monkeypatch.setattr(Store, "open_write", open_write)

    def body(collective: ThreadedCollective) -> str:
        rank = Rank(store, collective)
        for step in range(1, 20):
            rank.step(step)
            collective.allreduce_sum(torch.zeros(1), "step")
            if collective.rank == 0:
                (refusing.set if step in (3, 4) or step > 5 else refusing.clear)()
            collective.allreduce_sum(torch.zeros(1), "refusing")
            rank.save(step)
            try:
                said[collective.rank].append(rank.checkpoints.settle())
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return ""

    of_0, of_1 = run_threaded(2, body, timeout_s=60)
    assert [text is not None for text in said[0]] == [False, False, True, True, False, True, True]
    assert said[0] == said[1]
    assert "No space left on device" in str(said[0][2])
    assert "CheckpointError" in of_0
    assert "No space left on device" in of_1
    place, _, _ = resumed(store, 2)
    assert place == 5


@pytest.mark.parametrize("spare", [None, 0], ids=["beside training", "at once"])
def test_a_rank_to_whom_the_store_stays_full_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int | None
) -> None:
    """It can write neither its rows nor that it cannot write them; the others hear of it in a collective, not after the
    ten minutes in which a slow rank may write."""
    if spare is not None:
        monkeypatch.setattr(checkpoint, "spare_bytes", lambda: spare)
    store, write = Store(str(tmp_path / "store")), Store.open_write
    full = {1}

    @contextlib.contextmanager
    def open_write(self: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
        if full and any(name in path for name in ("buckets-2048", "/parts/")):
            raise StoreError("the store is full", value=path)
        with write(self, path, **options) as file:
            yield file

    monkeypatch.setattr(Store, "open_write", open_write)

    def body(collective: ThreadedCollective) -> list[str | None]:
        rank, said = Rank(store, collective), list[str | None]()
        for step in (1, 2):
            rank.step(step)
            rank.save(step)
            said.append(rank.checkpoints.settle())
            assert not rank.checkpoints.is_writing
            full.clear()  # both have settled, or none has
        return said

    of_0, of_1 = run_threaded(2, body, timeout_s=60)
    assert of_0 == of_1
    assert "the store is full" in str(of_0[0])
    assert of_0[1] is None
    assert resumed(store, 2)[:2] == (2, ())
    assert store.list(f"{ROOT}/rows/parts") == []


def test_an_optimizer_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))

    def body(collective: ThreadedCollective) -> str | None:
        rank = Rank(store, collective)
        rank.optimizer.param_groups[0]["of mine"] = {1, 2}
        rank.step(1)
        rank.save(1)
        return rank.checkpoints.settle()

    for said in run_threaded(2, body, timeout_s=60):
        assert "training goes on without it: the optimizer keeps state that cannot be stored" in str(said)


def test_a_store_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hard mount: no call of it returns, those neither that would delete what is left."""
    store, answers = Store(str(tmp_path / "store")), threading.Event()
    silent = threading.Event()
    monkeypatch.setattr(checkpoint, "_LIMIT_S", 0.5)
    for name in ("open_write", "list", "delete"):
        act = getattr(Store, name)

        def wait(self: Store, *given: Any, act: Any = act, **options: Any) -> Any:
            if silent.is_set():
                answers.wait(60)
            return act(self, *given, **options)

        monkeypatch.setattr(Store, name, wait)

    def body(collective: ThreadedCollective) -> str | None:
        rank = Rank(store, collective)
        rank.step(1)
        rank.save(1)
        assert rank.checkpoints.settle() is None
        rank.step(2)
        if collective.rank == 0:
            silent.set()
        collective.allreduce_sum(torch.zeros(1), "silent")
        rank.save(2)
        said = rank.checkpoints.settle()
        collective.allreduce_sum(torch.zeros(1), "said")
        answers.set()
        return said

    try:
        for said in run_threaded(2, body, timeout_s=30):
            assert "a checkpoint is not written after" in str(said)
    finally:
        answers.set()


@pytest.fixture
def silent_part() -> Iterator[Callable[[threading.Event], Part]]:
    """Writes to a store that does not answer."""
    answers = threading.Event()

    def part(given_up: threading.Event) -> Part:
        answers.wait(60)
        raise OSError("too late")

    yield part
    answers.set()


def never(part: Part, given_up: threading.Event) -> Written:
    pytest.fail("committed")


def test_a_part_that_is_late_keeps_no_other_from_being_begun(silent_part: Callable[[threading.Event], Part]) -> None:
    writing = Writing(silent_part, never, limit_s=0.2)
    assert not writing.is_part_over
    began = time.monotonic()
    writing.wait_for_part(60)
    assert time.monotonic() - began < 10, "no longer than its time"
    assert writing.is_part_over
    assert "a checkpoint is not written after 0 s" in str(writing.error)


def test_a_part_that_training_waits_for_is_given_up(silent_part: Callable[[threading.Event], Part]) -> None:
    writing = Writing(silent_part, never, limit_s=60, at_once_s=0.2)
    assert "a checkpoint is not written after 0 s" in str(writing.error)
    began = time.monotonic()
    writing.wait_for_part(60)
    writing.wait(60)
    assert time.monotonic() - began < 10, "it was waited for already"
