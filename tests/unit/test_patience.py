"""A store that fails for a while, or is full."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from hvdspark.artifact.tensors import read_tensors, write_tensors
from hvdspark.embedding.files.checked import checked_chunks
from hvdspark.errors import CheckpointError, StoreError
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


class Flaky:
    """A file system whose every call, and every read of its files, fails twice before it works."""

    def __init__(self, of: Any, pauses: list[float]) -> None:
        self._of, self._pauses = of, pauses

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if name.startswith("_") or not callable(found) or name in ("seek", "close", "invalidate_cache"):
            return found

        def called(*args: Any, **kwargs: Any) -> Any:
            if len(self._pauses) < 2:
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            answer = found(*args, **kwargs)
            return Flaky(answer, self._pauses) if name == "open" else answer

        return called

    def __enter__(self) -> Flaky:
        return self

    def __exit__(self, *_: object) -> None:
        self._of.close()


ASKED: dict[str, Callable[[Store], Any]] = {
    "exists": lambda store: store.exists("a/file"),
    "list": lambda store: store.list("a"),
    "read": lambda store: store.read_bytes("a/file"),
    "pieces": lambda store: b"".join(store.pieces("a/file")),
    "write": lambda store: store.write_bytes("a/file", b"content"),
    "delete": lambda store: store.delete("a/file"),
    "make a directory": lambda store: store.make_directory("b"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_whatever_is_asked_of_a_store_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, no_pauses: list[float], asked: str
) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.write_bytes("a/file", b"content")
    expected = {"exists": True, "list": ["file"], "read": b"content", "pieces": b"content"}.get(asked)
    flaky = Flaky(store.filesystem(), no_pauses)
    monkeypatch.setattr(Store, "filesystem", lambda self: flaky)
    monkeypatch.setattr(Store, "path", lambda self, path="": f"{self.uri.removeprefix('memory:/')}/{path}")
    assert ASKED[asked](store) == expected
    assert len(no_pauses) == 2


class BreaksOff:
    """A file of which every second read fails, in its middle too."""

    def __init__(self, file: BinaryIO, fails: Callable[[], bool]) -> None:
        self._file, self._fails = file, fails
        self.seek, self.close = file.seek, file.close

    def __enter__(self) -> BreaksOff:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, size: int) -> bytes:
        if self._fails():
            raise OSError(errno.EIO, "Input/output error")
        return self._file.read(size)


def test_a_file_is_read_on_where_reading_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    store, content, reads = Store(str(tmp_path)), os.urandom(9 << 20), itertools.count()
    store.write_bytes("file", content)
    open_read = Store.open_read
    breaks_off = lambda self, path: BreaksOff(open_read(self, path), lambda: next(reads) % 2 == 1)  # noqa: E731
    monkeypatch.setattr(Store, "open_read", breaks_off)
    digest = hashlib.sha256(content).hexdigest()
    assert b"".join(checked_chunks(store, "file", len(content), digest, "a file")) == content
    assert len(no_pauses) == 3, "behind each of its three pieces"


def test_a_file_that_can_not_be_read_for_a_minute_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: list[float]
) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("file", b"content")
    open_read = Store.open_read
    monkeypatch.setattr(Store, "open_read", lambda self, path: BreaksOff(open_read(self, path), lambda: True))
    monkeypatch.setattr(patience.patiently, "__kwdefaults__", {**patience.patiently.__kwdefaults__, "limit_s": 0.3})
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Input/output error\), again and again: 3 attempts"):
        list(checked_chunks(store, "file", 7, hashlib.sha256(b"content").hexdigest(), "a file"))


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
