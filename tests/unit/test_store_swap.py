"""A directory takes the place of another one: whoever looks finds the old or the new one, whole, whatever happens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import StoreError
from hvdspark.store import Store, swap
from hvdspark.store.swap import replaced

FILES = ("data/manifest.json", "data/weights", "metadata/part-0")


def write(store: Store, text: str) -> None:
    for name in FILES:
        store.write_text(name, text)


def read(store: Store) -> set[str]:
    """What is in all files; one text where they belong together."""
    return {store.read_text(name) if store.exists(name) else "missing" for name in FILES}


def beside(store: Store) -> list[str]:
    parent, _, name = store.uri.rpartition("/")
    return [other for other in Store(parent).list() if other != name]


@pytest.fixture(params=["exchanged", "renamed", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "object store":
        return Store(f"memory://{uuid.uuid4().hex}/models/m")
    if request.param == "renamed":
        monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    return Store(str(tmp_path / "m"))


def test_what_is_written_anew_takes_the_place_of_what_was_there(store: Store) -> None:
    write(store, "old")
    store.write_text("only before", "x")
    with replaced(store) as new:
        write(new, "new")
        assert read(store) == {"old"}, "until it is complete"
    assert read(store) == {"new"}
    assert not store.exists("only before")
    assert beside(store) == []


def test_where_nothing_was_it_is_simply_there(store: Store) -> None:
    with replaced(store) as new:
        write(new, "new")
    assert (read(store), beside(store)) == ({"new"}, [])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_with_an_error_nothing_has_changed(store: Store, error: type[BaseException]) -> None:
    write(store, "old")
    with pytest.raises(error), replaced(store) as new:  # noqa: PT012
        write(new, "new")
        raise error
    assert (read(store), beside(store)) == ({"old"}, [])


def test_what_cannot_take_the_place_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, renamed = Store(str(tmp_path / "m")), os.rename

    def fails(one: Any, other: Any) -> None:
        if str(other).endswith("/m"):
            monkeypatch.setattr(os, "rename", renamed)
            raise OSError(5, "Input/output error")
        renamed(one, other)

    write(store, "old")
    monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(StoreError, match=r"Input/output error.*complete at .*\.new") as caught, replaced(store) as new:
        write(new, "new")
    assert read(store) == {"old"}
    assert read(Store(str(caught.value.hint).split()[4].rstrip(":"))) == {"new"}


@pytest.mark.parametrize("uri", ["/", "memory://bucket", "s3://bucket"])
def test_a_whole_file_system_is_not_replaced(uri: str) -> None:
    with pytest.raises(StoreError, match="no directory that could be replaced"), replaced(Store(uri)):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="no exchange of names")
def test_a_link_is_replaced_and_not_what_it_leads_to(tmp_path: Path) -> None:
    write(Store(str(tmp_path / "v1")), "old")
    (tmp_path / "m").symlink_to(tmp_path / "v1")
    with replaced(Store(str(tmp_path / "m"))) as new:
        write(new, "new")
    assert not (tmp_path / "m").is_symlink()
    assert (read(Store(str(tmp_path / "m"))), read(Store(str(tmp_path / "v1")))) == ({"new"}, {"old"})
    assert sorted(os.listdir(tmp_path)) == ["m", "v1"]


@pytest.mark.skipif(sys.platform != "linux", reason="no exchange of names")
def test_a_reader_never_finds_none(tmp_path: Path) -> None:
    store, seen, over = Store(str(tmp_path / "m")), set(), threading.Event()
    write(store, "0")

    def look() -> None:
        while not over.is_set():
            seen.add((tmp_path / "m").is_dir())

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(30):
        with replaced(store) as new:
            write(new, str(number))
    over.set()
    reader.join()
    assert seen == {True}


DIES = """
import os, sys
from hvdspark.store import Store, swap
from hvdspark.store.swap import replaced
path, boundary = sys.argv[1], int(sys.argv[2])
calls = [0]

def dies(function):
    def call(*args, **kwargs):
        calls[0] += 1
        if calls[0] == boundary:
            os._exit(9)
        return function(*args, **kwargs)
    return call

Store.write_bytes, Store.delete = dies(Store.write_bytes), dies(Store.delete)
swap.exchange, swap._settle = dies(swap.exchange), dies(swap._settle)
with replaced(Store(path)) as new:
    for name in {files!r}:
        new.write_text(name, "new")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no exchange of names")
@pytest.mark.parametrize("boundary", range(1, 8))
def test_killed_at_any_boundary_there_is_the_old_or_the_new_one(tmp_path: Path, boundary: int) -> None:
    store = Store(str(tmp_path / "m"))
    write(store, "old")
    code = DIES.format(files=FILES)
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m"), str(boundary)], timeout=60).returncode
    assert ended == (9 if boundary <= 6 else 0), "files, exchange, settle, delete"
    assert read(store) == ({"old"} if boundary <= 4 else {"new"})
