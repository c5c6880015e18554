"""What hosts keep of the files that their ranks write: used where it is right, and never needed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hvdspark.embedding.files import kept
from hvdspark.embedding.files.kept import KeptFiles
from hvdspark.errors import CheckpointError
from hvdspark.store import Store

PLACE = "runs/r/checkpoints/rows/tables"
CONTENT = b"rows" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.fixture
def files(tmp_path: Path) -> KeptFiles:
    return made(tmp_path)


def made(tmp_path: Path, run: str = "r") -> KeptFiles:
    return KeptFiles(str(tmp_path / "scratch"), run, PLACE)


def path_of(save: str, name: str = "0/buckets") -> str:
    return f"{PLACE}/0/{save}/{name}"


def write(files: KeptFiles, store: Store, path: str, content: bytes = CONTENT) -> None:
    with store.open_write(path) as file, files.beside(path, file, len(content)) as both:
        both.write(memoryview(content)[:7])
        both.write(memoryview(content)[7:])


def read(files: KeptFiles, store: Store, path: str) -> bytes:
    return bytes(files.read(store, path, len(CONTENT), SHA256, "a file"))


def left(tmp_path: Path) -> set[str]:
    return {str(path.relative_to(tmp_path / "scratch")) for path in tmp_path.rglob("scratch/**/*") if path.is_file()}


def test_what_was_written_here_is_read_here(files: KeptFiles, store: Store, tmp_path: Path) -> None:
    write(files, store, path_of("s1"))
    later = made(tmp_path)
    assert later.has(path_of("s1"), len(CONTENT))
    assert not later.has(path_of("s1"), len(CONTENT) - 1)
    assert read(later, store, path_of("s1")) == CONTENT
    assert (later.found, later.fetched) == (len(CONTENT), 0)
    with store.open_read(path_of("s1")) as file:
        assert file.read() == CONTENT
    assert (tmp_path / "scratch/hvdspark-rows-r").stat().st_mode & 0o077 == 0


def test_what_is_not_here_comes_from_the_store(store: Store, tmp_path: Path) -> None:
    for files in (made(tmp_path), KeptFiles()):
        write(KeptFiles(), store, path_of("s1"))
        assert not files.has(path_of("s1"), len(CONTENT))
        assert read(files, store, path_of("s1")) == CONTENT
        assert (files.found, files.fetched) == (0, len(CONTENT))


def test_a_copy_with_another_bit_is_not_used(files: KeptFiles, store: Store, tmp_path: Path) -> None:
    write(files, store, path_of("s1"))
    (copy,) = (tmp_path / "scratch").rglob("buckets")
    copy.write_bytes(CONTENT[:-1] + b"?")
    assert files.has(path_of("s1"), len(CONTENT))
    assert read(files, store, path_of("s1")) == CONTENT
    assert files.fetched == len(CONTENT)
    assert not copy.exists()
    write(files, store, path_of("s1"), CONTENT[:-1] + b"?")  # nor where the store has it
    with pytest.raises(CheckpointError, match="damaged"):
        read(files, store, path_of("s1"))


def test_a_disk_that_cannot_be_read_is_asked_once(
    files: KeptFiles, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(files, store, path_of("s1"))
    asked, really = [], open

    def refuse(file: Any, *arguments: Any, **options: Any) -> Any:
        if str(tmp_path / "scratch") in str(file):
            asked.append(file)
            raise OSError(errno.EIO, "Input/output error")
        return really(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", refuse)
    assert read(files, store, path_of("s1")) == CONTENT
    assert (files.found, files.fetched, len(asked)) == (0, len(CONTENT), 1)


def test_a_disk_that_cannot_be_written_costs_the_copy_alone(files: KeptFiles, store: Store, tmp_path: Path) -> None:
    (tmp_path / "scratch").touch()  # where the directory should be
    write(files, store, path_of("s1"))
    assert read(files, store, path_of("s1")) == CONTENT


def test_a_disk_that_is_full_costs_the_copy_alone(
    files: KeptFiles, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "open", lambda *_: Full(), raising=False)
    write(files, store, path_of("s1"))
    assert read(files, store, path_of("s1")) == CONTENT
    assert left(tmp_path) == set()


def test_copies_leave_half_of_what_is_free(
    files: KeptFiles, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(CONTENT) - 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    write(files, store, path_of("s1"))
    assert left(tmp_path) == set()


def test_a_file_that_could_not_be_written_has_no_copy(files: KeptFiles, tmp_path: Path) -> None:
    class CutShort(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise ValueError("cut short")

    with pytest.raises(ValueError, match="cut short"), files.beside(path_of("s1"), CutShort(), 1) as both:
        both.write(b"half")
    assert left(tmp_path) == set()


def test_other_files_of_the_store_are_not_kept(files: KeptFiles, store: Store, tmp_path: Path) -> None:
    write(files, store, "runs/r/model/tables/0/buckets")
    assert left(tmp_path) == set()


def test_copies_are_those_of_the_newest_checkpoint(files: KeptFiles, store: Store, tmp_path: Path) -> None:
    def saved(files: KeptFiles, save: str, *, whole: bool, written: bool = True) -> set[str]:
        files.begin(save, whole=whole)
        write(files, store, path_of(save))
        files.settle(written)
        return {path.split("/")[2] for path in left(tmp_path)}

    assert saved(files, "s1", whole=True) == {"s1"}
    assert saved(files, "s2", whole=False) == {"s1", "s2"}
    assert saved(files, "s3", whole=False, written=False) == {"s1", "s2"}
    assert saved(files, "s4", whole=True) == {"s4"}
    assert saved(files, "s5", whole=False) == {"s4", "s5"}
    later = made(tmp_path)  # a generation that goes on from s5, and fails to write its first
    assert saved(later, "t1", whole=True, written=False) == {"s4", "s5"}
    assert saved(later, "t2", whole=True) == {"t2"}
    later.clear()
    assert left(tmp_path) == set()


def test_what_runs_have_left_goes_when_another_one_finds_it(store: Store, tmp_path: Path) -> None:
    for run, hours in (("lost", 13), ("going-on", 1)):
        write(made(tmp_path, run), store, path_of("s1"))
        folder = tmp_path / f"scratch/hvdspark-rows-{run}"
        since = folder.stat().st_mtime - 3600 * hours
        os.utime(folder, (since, since))
    made(tmp_path, "another")
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["hvdspark-rows-going-on"]
