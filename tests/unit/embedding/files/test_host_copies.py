"""One copy of remote tables for each host, shared by its processes."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import shutil
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdspark.embedding.files import host_copies
from hvdspark.embedding.files.entries import FileEntry, parse_entries
from hvdspark.embedding.files.host_copies import HostCopy, locate_files
from hvdspark.embedding.files.shards import write_shards
from hvdspark.errors import CheckpointError, StoreError
from hvdspark.store import Store
from tests.unit.embedding.shards import trained


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's temporary directory."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def files(store: Store) -> list[FileEntry]:
    return written(store)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that was opened for reading in a store."""
    paths: list[str] = []
    open_read = Store.open_read
    monkeypatch.setattr(Store, "open_read", lambda self, path: (paths.append(path), open_read(self, path))[1])
    return paths


def written(store: Store) -> list[FileEntry]:
    entries = write_shards(store, "tables", trained(1, steps=1)[0], state=False)
    return [entry for entry in parse_entries(entries, "here") if entry.path is not None]


def copies(temporary: Path) -> set[str]:
    """Names of the copies of this user."""
    base = temporary / f"hvdspark-{os.getuid()}"
    assert {path.stem for path in base.glob("*.lock")} >= {path.name for path in base.iterdir() if path.is_dir()}
    return {path.name for path in base.iterdir() if path.is_dir()}


def test_a_local_store_is_used_in_place(tmp_path: Path, temporary: Path) -> None:
    store = Store(str(tmp_path / "store"))
    files = written(store)
    locate = locate_files(store, "tables", "f")
    assert locate(files[0]) == tmp_path / "store" / "tables" / str(files[0].path)
    assert [path.name for path in temporary.iterdir()] == ["store"]


def test_a_local_file_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    files = written(store)
    path = tmp_path / "tables" / str(files[0].path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"damaged.*{files[0].path}.*Hint"):
        locate_files(store, "tables", "f")(files[0])
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"cannot be read.*{files[0].path}.*Hint"):
        locate_files(store, "tables", "f")(files[0])


def test_a_file_is_copied_when_it_is_first_asked_for(
    temporary: Path, store: Store, files: list[FileEntry], opened: list[str]
) -> None:
    locate = locate_files(store, "tables", "f")
    assert opened == []
    path = locate(files[3])
    assert path.read_bytes() == store.read_bytes(f"tables/{files[3].path}")
    opened.clear()
    assert locate(files[3]) == path
    assert locate_files(store, "tables", "f")(files[3]) == path, "another process finds it"
    assert opened == []
    assert [file.name for file in path.parent.iterdir() if file.suffix == ".safetensors"] == [path.name]


def test_copies_are_private(temporary: Path, store: Store, files: list[FileEntry]) -> None:
    path = HostCopy(store, "tables", "f").path(files[0])
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
def test_a_place_that_others_can_write_is_refused(temporary: Path, store: Store, kind: str) -> None:
    base = temporary / f"hvdspark-{os.getuid()}"
    if kind == "open to others":
        base.mkdir()
        base.chmod(0o770)
    elif kind == "a link":
        (temporary / "target").mkdir(mode=0o700)
        base.symlink_to(temporary / "target")
    else:
        base.write_text("")
    with pytest.raises(StoreError, match=rf"{base.name}.*Hint.*TMPDIR"):
        HostCopy(store, "tables", "f")


def test_a_damaged_file_is_never_seen(temporary: Path, store: Store, files: list[FileEntry]) -> None:
    data = store.read_bytes(f"tables/{files[0].path}")
    store.write_bytes(f"tables/{files[0].path}", data[:-1] + b"\x01")
    copy = HostCopy(store, "tables", "f")
    with pytest.raises(CheckpointError, match=rf"damaged.*{files[0].path}"):
        copy.path(files[0])
    store.delete(f"tables/{files[0].path}")
    with pytest.raises(CheckpointError, match=rf"cannot be read.*{files[0].path}"):
        copy.path(files[0])
    assert not list(temporary.rglob("*.safetensors"))
    store.write_bytes(f"tables/{files[0].path}", data)
    assert copy.path(files[0]).read_bytes() == data, "what a failed attempt left is not in the way"


def test_a_full_disk_is_named(
    temporary: Path, store: Store, files: list[FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StoreError, match=r"No space left on device.*Hint: TMPDIR"):
        HostCopy(store, "tables", "f").path(files[0])


def test_copies_that_nobody_uses_go_when_another_is_made(temporary: Path, store: Store, files: list[FileEntry]) -> None:
    first, second = HostCopy(store, "tables", "1"), HostCopy(store, "tables", "2")
    kept, gone = first.path(files[0]), second.path(files[0])
    assert len(copies(temporary)) == 2
    second.close()
    third = HostCopy(store, "tables", "3")
    third.path(files[0])
    assert kept.exists()
    assert not gone.exists()
    assert len(copies(temporary)) == 2
    del first
    gc.collect()
    HostCopy(store, "tables", "4")
    assert not kept.exists(), "a copy is given up with the object that holds it"
    assert HostCopy(store, "tables", "1").path(files[0]).exists(), "and can be made again"
    third.close()


def hold(uri: str, file: FileEntry, temporary: Path, pipe: Any) -> None:
    import tempfile

    tempfile.tempdir = str(temporary)
    copy = HostCopy(Store(uri), "tables", "held")
    pipe.send(str(copy.path(file)))
    pipe.recv()


def test_a_copy_that_another_process_uses_stays(temporary: Path, store: Store, files: list[FileEntry]) -> None:
    ours, theirs = multiprocessing.Pipe()
    # fork: the child sees this process's memory:// store
    process = multiprocessing.get_context("fork").Process(target=hold, args=(store.uri, files[0], temporary, theirs))
    process.start()
    try:
        theirs.close()
        path = Path(ours.recv())
        HostCopy(store, "tables", "another").close()
        assert path.exists()
    finally:
        process.kill()  # not even then does its lock stay
        process.join(30)
    HostCopy(store, "tables", "another").close()
    assert not path.exists()
    ours.close()


def test_one_process_copies_while_others_wait(
    temporary: Path, store: Store, files: list[FileEntry], opened: list[str]
) -> None:
    found: list[bytes] = []
    start = threading.Barrier(6)

    def ask() -> None:
        copy = HostCopy(store, "tables", "f")
        start.wait(30)
        found.append(copy.path(files[0]).read_bytes())
        copy.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [store.read_bytes(f"tables/{files[0].path}")] * 6
    assert len(opened) == 2, "one by the copy, one just now"


@pytest.fixture
def locked(temporary: Path, store: Store, files: list[FileEntry]) -> Iterator[HostCopy]:
    """A copy whose first file somebody is at work on, and never ends."""
    copy = HostCopy(store, "tables", "f")
    name = f"{files[0].group}-{files[0].first}-{files[0].stop}.safetensors.lock"
    folder = next(temporary.glob("hvdspark-*/*.lock")).with_suffix("")
    folder.mkdir()
    with open(folder / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield copy


def test_nobody_waits_for_ever(locked: HostCopy, files: list[FileEntry], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "_LOCK_TIMEOUT_S", 0.1)
    with pytest.raises(StoreError, match=r"another process has held a lock.*Hint"):
        locked.path(files[0])


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    temporary: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file, who removed the copy before us may have removed the file, too."""
    flock, removed = fcntl.flock, []

    def remove_first(descriptor: int, kind: int) -> None:
        if not removed:
            (path,) = temporary.glob("hvdspark-*/*.lock")
            path.unlink()
            removed.append(path)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    copy = HostCopy(store, "tables", "f")
    assert removed[0].exists()
    other = os.open(removed[0], os.O_RDWR)
    with pytest.raises(BlockingIOError):
        flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    copy.close()


def test_room_is_looked_for_before_a_file_is_copied(
    temporary: Path, store: Store, files: list[FileEntry], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = HostCopy(store, "tables", "f")
    usage = shutil.disk_usage(temporary)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=files[0].bytes - 1))
    with pytest.raises(
        StoreError, match=r"no room on this host.*it has [\d.]+ K?i?B, [\d.]+ K?i?B are free.*Hint: TMPDIR"
    ):
        copy.path(files[0])
    assert opened == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=files[0].bytes))
    assert copy.path(files[0]).exists()


@pytest.mark.parametrize("what", ["full", "damaged"])
def test_a_copy_that_failed_leaves_nothing(
    temporary: Path, store: Store, files: list[FileEntry], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if what == "full":
        monkeypatch.setattr("os.replace", full)
    else:
        store.write_bytes(f"tables/{files[0].path}", b"x" * files[0].bytes)
    with pytest.raises((StoreError, CheckpointError)):
        HostCopy(store, "tables", "f").path(files[0])
    assert not list(temporary.rglob("*.part"))


def test_what_a_killed_process_left_goes_and_what_another_is_writing_stays(
    temporary: Path, store: Store, files: list[FileEntry]
) -> None:
    used = HostCopy(store, "tables", "used")
    folder = used.path(files[0]).parent
    for name in ("killed", "writing"):
        (folder / f"{name}.safetensors.part").write_bytes(b"half of it")
        (folder / f"{name}.safetensors.lock").touch()
    with open(folder / "writing.safetensors.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        HostCopy(store, "tables", "another").close()
    assert [path.name for path in temporary.rglob("*.part")] == ["writing.safetensors.part"]
    assert used.path(files[0]).exists()
