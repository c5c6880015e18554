"""A store that fails for a while, or is full."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark.artifact.tensors import read_tensors, write_tensors
from hvdspark.errors import StoreError
from hvdspark.store import Store, patience
from hvdspark.store.patience import may_pass, patiently


class Failing:
    """Fails so often, as a store does."""

    def __init__(self, times: float, error: OSError) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise StoreError("cannot list a path of the store", value="file:///s", hint="look there") from self.error
        return "answer"


def waits(act: Any, limit_s: float = 60.0) -> tuple[Any, list[float]]:
    """What `patiently` returns or raises, and the pauses it makes."""
    pauses: list[float] = []
    try:
        return patiently(act, limit_s=limit_s, sleep=pauses.append, clock=lambda: sum(pauses)), pauses
    except StoreError as error:
        return error, pauses


def test_it_is_asked_again_at_growing_intervals_until_it_answers() -> None:
    found, pauses = waits(Failing(4, OSError(errno.EIO, "Input/output error")))
    assert found == "answer"
    assert pauses == [0.1, 0.2, 0.4, 0.8]


def test_a_minute_of_failures_is_an_error_that_says_so() -> None:
    failing = Failing(float("inf"), ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    error, pauses = waits(failing)
    assert 45 < sum(pauses) <= 60
    assert max(pauses) == 8.0
    assert f"again and again: {failing.calls} attempts in {sum(pauses):.0f} s" in str(error)
    assert (error.value, error.hint, error.attempts) == ("file:///s", "look there", failing.calls)
    assert isinstance(error.__cause__, ConnectionResetError)


def test_whoever_asks_patiently_what_was_asked_patiently_does_not_wait_twice() -> None:
    pauses: list[float] = []
    failing = Failing(float("inf"), TimeoutError())
    inner = lambda: patiently(failing, limit_s=1.0, sleep=pauses.append, clock=lambda: sum(pauses))  # noqa: E731
    error, outer_pauses = waits(inner)
    assert isinstance(error, StoreError)
    assert outer_pauses == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.ENOENT, errno.EROFS, None])
def test_what_does_not_pass_is_said_at_once(number: int | None) -> None:
    cause = OSError("somehow") if number is None else OSError(number, os.strerror(number))
    assert not may_pass(cause)
    _, pauses = waits(Failing(1, cause))
    assert pauses == []


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    defaults = dict(patience.patiently.__kwdefaults__ or {})
    monkeypatch.setattr(patience.patiently, "__kwdefaults__", {**defaults, "sleep": pauses.append})
    return pauses


def fail_fsync(monkeypatch: pytest.MonkeyPatch, times: float, number: int) -> None:
    fsync, calls = os.fsync, [0]

    def failing(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] <= times:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def test_files_are_written_anew_until_the_store_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    store = Store(str(tmp_path))
    fail_fsync(monkeypatch, 2, errno.EIO)
    store.write_bytes("a/small", b"small")
    fail_fsync(monkeypatch, 3, errno.ESTALE)
    write_tensors(store, "a/large", {"x": torch.arange(5)})
    assert len(no_pauses) == 5
    assert store.read_bytes("a/small") == b"small"
    assert read_tensors(store, "a/large")["x"].tolist() == [0, 1, 2, 3, 4]
    assert store.list("a") == ["large", "small"]


def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    store = Store(str(tmp_path))
    fail_fsync(monkeypatch, float("inf"), errno.ENOSPC)
    with pytest.raises(StoreError, match=r"the store is full: .*No space left on device.*Hint: free space"):
        store.write_bytes("a/file", b"content")
    with pytest.raises(StoreError, match="the store is full"):
        write_tensors(store, "a/tensors", {"x": torch.arange(5)})
    assert (store.list("a"), no_pauses) == ([], [])
