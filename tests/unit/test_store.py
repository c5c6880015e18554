"""URI forms, atomic writes, commit markers and what a store refuses."""

from __future__ import annotations

import json
import os
import pickle
import stat
import threading
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import StoreError
from hvdspark.store import Store

FORMS = [
    # given, Spark, Petastorm, local path
    ("/data/x", "file:///data/x", "file:///data/x", "/data/x"),
    ("/data/x/", "file:///data/x", "file:///data/x", "/data/x"),
    ("/data//x/./y", "file:///data/x/y", "file:///data/x/y", "/data/x/y"),
    ("file:/data/x", "file:///data/x", "file:///data/x", "/data/x"),
    ("file:///data/x", "file:///data/x", "file:///data/x", "/data/x"),
    ("FILE:///data/x", "file:///data/x", "file:///data/x", "/data/x"),
    ("/data/my store", "file:///data/my store", "file:///data/my store", "/data/my store"),
    ("file:///data/my%20store", "file:///data/my store", "file:///data/my store", "/data/my store"),
    ("s3://bucket/a/b", "s3a://bucket/a/b", "s3://bucket/a/b", None),
    ("s3a://bucket/a/b/", "s3a://bucket/a/b", "s3://bucket/a/b", None),
    ("s3n://bucket", "s3a://bucket", "s3://bucket", None),
    ("gs://bucket/a", "gs://bucket/a", "gs://bucket/a", None),
    (
        "abfss://box@account.dfs.core.windows.net/a",
        "abfss://box@account.dfs.core.windows.net/a",
        "abfs://box@account.dfs.core.windows.net/a",
        None,
    ),
    ("hdfs://namenode:8020/a", "hdfs://namenode:8020/a", "hdfs://namenode:8020/a", None),
    ("hdfs:///a", "hdfs:///a", "hdfs:///a", None),
    ("dbfs:/a", "dbfs:/a", "file:///dbfs/a", "/dbfs/a"),
    ("dbfs:///a", "dbfs:/a", "file:///dbfs/a", "/dbfs/a"),
    ("/dbfs/a", "dbfs:/a", "file:///dbfs/a", "/dbfs/a"),
    ("/Volumes/c/s/v", "dbfs:/Volumes/c/s/v", "file:///Volumes/c/s/v", "/Volumes/c/s/v"),
    ("dbfs:/Volumes/c/s/v", "dbfs:/Volumes/c/s/v", "file:///Volumes/c/s/v", "/Volumes/c/s/v"),
]


@pytest.mark.parametrize(("given", "spark", "petastorm", "local"), FORMS)
def test_forms(given: str, spark: str, petastorm: str, local: str | None) -> None:
    store = Store(given)
    assert (store.uri, store.spark_uri()) == (spark, spark)
    assert store.petastorm_uri() == petastorm
    assert store.local_path() == (Path(local) if local else None)
    assert store.spark_uri("runs/1") == f"{spark}/runs/1"
    assert store.petastorm_uri("runs/1") == f"{petastorm}/runs/1"
    assert store.local_path("runs/1") == (Path(local) / "runs/1" if local else None)
    assert Store(store.uri) == store, "the canonical form is a fixed point"
    assert pickle.loads(pickle.dumps(store)) == store


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("runs").uri == f"file://{tmp_path}/runs"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (None, "empty"),
        ("s3a:///a", "no bucket"),
        ("s3a:bucket/a", "no bucket"),
        ("floppy://a/b", "floppy"),
        ("file://host/a", "no host"),
        ("/data/*", r"\*"),
        ("/data/a?b", r"\?"),
        ("/data/100%", "%"),
        ("/data/a\nb", "characters"),
        ("/data/\ud800", "characters"),
        ("s3a://bucket::http://169.254.169.254/a", "::"),
        ("simplecache::s3://bucket/a", "::"),
    ],
)
def test_nonsense_is_refused(uri: str, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        Store(uri)


@pytest.mark.parametrize(
    "uri",
    [
        *("s3a://key:secret@bucket/a", "s3://key:sec/ret/secret@bucket/a", "abfss://box@account/a?sig=secret"),
        *("hdfs://u:secret@nn/a", "hdfs://u:secret@nn:8020/a", "file://u:secret@host/a", "gs://b/a;token=secret"),
    ],
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(StoreError) as refused:
        Store(uri)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\x00b", "..\\x", "a\ud800"])
def test_paths_stay_inside(tmp_path: Path, path: str) -> None:
    store = Store(str(tmp_path))
    for use in (store.spark_uri, store.petastorm_uri, store.local_path, store.exists, store.delete, store.read_bytes):
        with pytest.raises(StoreError, match="relative"):
            use(path)


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    """Whoever sends a store as an archive may have put links into it."""
    outside, store = tmp_path / "outside", Store(str(tmp_path / "linked" / "store"))
    outside.mkdir()
    (outside / "file").write_text("mine")
    (tmp_path / "linked").symlink_to(tmp_path / "real")  # a store may itself be reached by one
    (tmp_path / "real").mkdir()
    store.write_text("inside/file", "its own")
    root = tmp_path / "real" / "store"
    (root / "out").symlink_to(outside)
    (root / "file").symlink_to("../../outside/file")
    (root / "in").symlink_to("inside")
    assert store.read_text("in/file") == "its own"
    for path in ("out/file", "file"):
        for use in (store.read_bytes, store.exists, store.local_path, lambda path: store.write_text(path, "theirs")):
            with pytest.raises(StoreError, match="leads out of the store"):
                use(path)
    for path in ("out/file", "out/new"):
        with pytest.raises(StoreError, match="leads out of the store"):
            store.delete(path)
    for use in (store.list, store.make_directory):
        with pytest.raises(StoreError, match="leads out of the store"):
            use("out")
    store.delete("out")
    store.delete("file")
    assert store.list() == ["in", "inside"], "a link itself may be deleted"
    assert (outside / "file").read_text() == "mine"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same behaviour on plain files and on a filesystem that only fsspec knows."""
    return Store(str(tmp_path / "my store") if request.param == "local" else f"memory://{uuid.uuid4().hex}/store")


def test_write_read_list_delete(store: Store) -> None:
    assert store.list() == []
    assert store.list("missing") == []
    assert not store.exists("runs/1/a")
    store.write_text("runs/1/a", "é\n")
    store.write_bytes("runs/1/b", b"\x00\x01")
    store.write_bytes("runs/1/b", b"\x02")
    assert store.exists("runs/1/a")
    assert store.exists("runs/1")
    assert store.read_text("runs/1/a") == "é\n"
    assert store.read_bytes("runs/1/b") == b"\x02"
    with store.open_read("runs/1/a") as file:
        assert file.seek(2) == 2
        assert file.read() == b"\n"
    assert store.list("runs/1") == ["a", "b"]
    assert store.list() == ["runs"]
    store.delete("runs/1/a")
    assert store.list("runs/1") == ["b"]
    store.delete("runs")
    store.delete("runs")
    assert store.list() == []


def test_a_file_written_in_pieces_appears_when_it_is_whole(store: Store) -> None:
    with store.open_write("runs/1/a") as file:
        file.write(b"one, ")
        assert not store.exists("runs/1/a")
        file.write(b"two")
    assert store.read_bytes("runs/1/a") == b"one, two"
    with pytest.raises(ZeroDivisionError), store.open_write("runs/1/a") as file:
        file.writelines(b"%d" % (1 // divisor) for divisor in (1, 0))
    assert store.read_bytes("runs/1/a") == b"one, two"
    assert store.list("runs/1") == ["a"], "no temporary file is left"


def test_pieces_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file/a"), Store(str(tmp_path)).open_write("file/a"):
        pytest.fail("nothing can be written here")


def test_copies_of_a_file(store: Store, tmp_path: Path) -> None:
    data = os.urandom(9_000_000)
    other = Store(str(tmp_path / "other"))
    other.write_bytes("a/b", data)
    store.copy_from(other, "a/b", "c/d")
    assert store.read_bytes("c/d") == data
    other.copy_from(store, "c/d", "e")
    assert other.read_bytes("e") == data
    with pytest.raises(StoreError, match="c/missing"):
        other.copy_from(store, "c/missing", "e")
    assert other.read_bytes("e") == data


def test_a_copy_takes_little_memory(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.open_write("large") as file:
        for _ in range(16):
            file.write(bytes(4 << 20))
    tracemalloc.start()
    try:
        store.copy_from(store, "large", "copy")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "copy").stat().st_size == 64 << 20


def test_missing_files_are_named(store: Store) -> None:
    with pytest.raises(StoreError, match="runs/9") as missing:
        store.read_bytes("runs/9")
    assert "Hint" in str(missing.value)


def test_errors_say_what_the_place_was_given_as(tmp_path: Path) -> None:
    given = Store(str(tmp_path), "path")
    for store, said in (
        (given, "path"),
        (pickle.loads(pickle.dumps(given)), "path"),
        (Store(str(tmp_path)), "store_uri"),
    ):
        with pytest.raises(StoreError, match=rf"missing' \(in {said}\)"):
            store.read_bytes("missing")
    with pytest.raises(StoreError, match=r"unknown scheme.*\(in path\)"):
        Store("s4://bucket/x", "path")
    assert given == Store(str(tmp_path)), "it is the same place"


def test_the_manifest_is_the_commit(store: Store) -> None:
    store.write_bytes("model/weights", b"0")
    assert store.committed("model") is None
    store.commit("model", {"epoch": 3})
    assert store.committed("model") == {"epoch": 3}
    store.write_bytes("model/manifest.json", b"{")
    with pytest.raises(StoreError, match="model/manifest.json"):
        store.committed("model")


def test_a_manifest_that_changed_is_no_manifest(store: Store) -> None:
    said = {"epoch": 3, "loss": [0.1, float("nan"), 1e-300], "names": {"é": None, "b": True}, "empty": {}}
    store.commit("model", said)
    whole = store.read_bytes("model/manifest.json")
    expected = json.dumps(said, sort_keys=True)
    assert json.dumps(store.committed("model"), sort_keys=True) == expected
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        store.write_bytes("model/manifest.json", flipped)
        try:
            found = store.committed("model")
        except StoreError:
            continue
        known = {name: value for name, value in (found or {}).items() if name in said}
        assert json.dumps(known, sort_keys=True) == expected, "nothing else was understood"
    store.write_text("model/manifest.json", json.dumps({"epoch": 4}))
    assert store.committed("model") == {"epoch": 4}, "earlier versions wrote no checksum"


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff", b"1" * 10_000, b"{} {}", b"", b'{"a": '])
def test_what_is_no_json_is_named(store: Store, text: bytes) -> None:
    store.write_bytes("model/manifest.json", text)
    for read in (lambda: store.committed("model"), lambda: store.read_json("model/manifest.json")):
        with pytest.raises(StoreError, match="cannot be parsed.*model/manifest.json"):
            read()


def test_filesystem_and_path_agree(store: Store) -> None:
    store.write_bytes("a/b", b"1")
    assert store.filesystem().cat_file(store.path("a/b")) == b"1"


def test_check_writable_leaves_nothing(store: Store) -> None:
    store.check_writable()
    assert store.list() == []
    local = store.local_path()
    assert local is None or not local.exists(), "nor the directory it had to create"


def test_check_writable_makes_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to go again, while another fit of the same store is about to write into it."""

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a directory was made")

    monkeypatch.setattr(Path, "mkdir", made)
    Store(str(tmp_path / "new" / "store")).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    store, texts = Store(str(tmp_path)), [c * 200_000 for c in "ab"]
    store.write_text("file", texts[0])
    done, seen = threading.Event(), set()

    def write() -> None:
        for turn in range(40):
            store.write_text("file", texts[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen.add(store.read_text("file"))
    writer.join()
    assert seen <= set(texts)
    assert store.list() == ["file"], "no temporary file is left"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.write_text("file", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write_text("file", "new")
    assert store.read_text("file") == "old"
    assert store.list() == ["file"]


def test_new_local_directories_are_private(tmp_path: Path) -> None:
    Store(str(tmp_path / "new")).make_directory("runs/1")
    for folder in ("new", "new/runs", "new/runs/1"):
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0, 0o077])
def test_files_are_private_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = Store(str(tmp_path / "new"))
        store.write_text("a/b/file", "1")
        store.commit("a", {})
        store.check_writable()
        with store.open_write("a/b/large") as file:
            assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "a" / "b").iterdir()} == {0o600}
            file.write(b"1")
    finally:
        os.umask(before)
    found = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found if path.is_file()} == {0o600}


def test_an_unwritable_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError) as refused:
        Store(str(tmp_path / "file" / "store")).check_writable()
    assert str(tmp_path / "file" / "store") in str(refused.value)
    assert refused.value.what == "the store cannot be written (NotADirectoryError: Not a directory)"
    assert str(refused.value).count("Hint") == 1
    assert isinstance(refused.value.__cause__, NotADirectoryError)


def test_a_store_that_may_not_be_looked_for_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path.exists raises there, up to Python 3.13; root may search everywhere."""
    exists = Path.exists

    def refuse(self: Path, **options: Any) -> bool:
        if self.name == "store":
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self, **options)

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(StoreError, match="cannot be written .PermissionError: Permission denied.*Hint"):
        Store(str(tmp_path / "theirs" / "store")).check_writable()


def test_a_filesystem_that_refuses_in_its_own_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store("memory://bucket/store")

    def refuse(*_: object) -> None:
        raise RuntimeError("403 Forbidden")

    monkeypatch.setattr(type(store.filesystem()), "pipe_file", refuse)
    with pytest.raises(StoreError) as refused:
        store.check_writable()
    assert refused.value.what == "the store cannot be written (RuntimeError: 403 Forbidden)"
    assert str(refused.value).count("Hint") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="PermissionError"):
        Store(str(tmp_path / "store")).check_writable()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(StoreError, match="pip install s3fs"):
        Store("s3a://bucket/a").filesystem()
