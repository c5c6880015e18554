"""A directory of weights and other files counts when it is complete, and is what it was when it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark import __version__
from hvdspark.artifact.directory import FORMAT, WEIGHTS, Artifact, ArtifactWriter
from hvdspark.errors import CheckpointError
from hvdspark.store import Store


def written(store: Store, directory: str = "a", first: float = 0.0) -> ArtifactWriter:
    shared = torch.arange(3.0) + first
    writer = ArtifactWriter(store, directory)
    writer.tensors(WEIGHTS, {"w": shared, "tied": shared})
    writer.tensors("optimizer.safetensors", {"m": torch.ones(2), "n": torch.ones(2, dtype=torch.complex64)})
    writer.file("words.json", b"{}")
    return writer


def test_files_come_back_with_what_the_manifest_says(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    tables = [{"description": {}, "files": []}]
    written(store).commit({"epoch": 3}, tables)
    artifact = Artifact.open(store, "a")
    artifact.verify()
    assert artifact.tensors()["tied"].tolist() == [0.0, 1.0, 2.0]
    assert artifact.tensors("optimizer.safetensors")["n"].dtype == torch.complex64
    assert (artifact.read("words.json"), artifact.tables, artifact.manifest["epoch"]) == (b"{}", tables, 3)
    assert artifact.manifest["format"] == FORMAT
    assert artifact.manifest["written_by"] == f"hvdspark {__version__}"


def test_nothing_is_there_before_the_manifest(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writer = written(store)
    with pytest.raises(CheckpointError, match="no complete model or checkpoint.*Hint.*never finished"):
        Artifact.open(store, "a")
    writer.commit({})
    assert Artifact.open(store, "a").tables == []
    with pytest.raises(CheckpointError, match="directory of the weights is gone.*Hint.*makes a copy"):
        Artifact.open(store, "b")


def test_a_fingerprint_is_of_weights_and_tables_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    written(store, "a").commit({"epoch": 1})
    written(store, "b").commit({"epoch": 2})
    written(store, "c", first=1.0).commit({"epoch": 1})
    written(store, "d").commit({"epoch": 1}, [{"description": {}, "files": []}])
    found = [Artifact.open(store, name).fingerprint for name in "abcd"]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert Artifact.open(store, "b", found[0]).manifest["epoch"] == 2
    with pytest.raises(CheckpointError, match="another model was saved here.*Hint: load the model again"):
        Artifact.open(store, "c", found[0])


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"files": {"../x": {"sha256": "0" * 64, "bytes": 1}}}, "must be relative"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "must be relative"),
        ({"files": {"": {"sha256": "0" * 64, "bytes": 1}}}, "no file with a size"),
        ({"files": {"x": {"sha256": "0" * 64, "bytes": -1}}}, "no file with a size"),
        ({"files": {"x": {"sha256": "../x", "bytes": 1}}}, "no file with a size"),
        ({"files": {"x": {"sha256": "0" * 64, "bytes": "1"}}}, "files.x.bytes is of type str"),
        ({"files": {"x": None}}, "files.x is of type NoneType"),
        ({"files": []}, "files is a list"),
        ({"format": "1"}, "format is no number"),
        ({"aliases": {"a": 5}}, "aliases is no list of names"),
        ({"optimizer_aliases": []}, "optimizer_aliases is no list of names"),
        ({"tables": {}}, "tables is a dict"),
        ({"tables": [{"files": []}]}, "lacks 'description'"),
        ({"tables_at": {"store": "file:///a", "directory": "../b"}}, "must be relative"),
        ({"tables_at": {"store": "file:///a"}}, "lacks 'directory'"),
        ({"tables_at": "file:///a"}, "tables_at is of type str"),
    ],
)
def test_what_becomes_a_path_or_a_size_is_checked_when_it_is_opened(
    tmp_path: Path, entries: dict[str, Any], words: str
) -> None:
    store = Store(str(tmp_path))
    written(store).commit({})
    store.commit("a", {**Artifact.open(store, "a").manifest, **entries})
    with pytest.raises(CheckpointError, match=f"the manifest is damaged .*{words}"):
        Artifact.open(store, "a")


@pytest.mark.parametrize(
    "entry",
    [
        {"group": "../../../../tmp/x"},  # it names the copies on a host without the store
        {"group": -1},
        {"path": "../../a"},
        {"path": "/etc/passwd"},
        {"path": 5},
        {"bytes": -1},
        {"bytes": 1.5},
        {"rows": {"t": -1}},
        {"rows": []},
        {"stop": 2**60},
        {"more": 1},
    ],
)
def test_entries_of_table_files_are_checked_when_it_is_opened(tmp_path: Path, entry: dict[str, Any]) -> None:
    store = Store(str(tmp_path))
    good = {"path": "0/b", "group": 0, "first": 0, "stop": 4096, "rows": {"t": 1}, "state": False, "bytes": 5}
    written(store).commit({}, [{"description": {}, "files": [good]}])
    assert Artifact.open(store, "a").tables[0]["files"] == [good]
    written(store).commit({}, [{"description": {}, "files": [{**good, **entry}]}])
    with pytest.raises(CheckpointError, match="the manifest is damaged .*list of table files"):
        Artifact.open(store, "a")


@pytest.mark.parametrize(
    ("uri", "trusted", "allowed"),
    [
        ("file:///elsewhere", "", True),
        ("s3a://bucket/elsewhere", "", True),
        ("memory://here/elsewhere", "", True),  # where the model itself is
        ("memory://there/elsewhere", "", False),
        ("http://169.254.169.254/latest", "", False),
        ("hdfs://namenode:8020/elsewhere", "", False),
        ("hdfs://namenode:8020/elsewhere", "s3a://x, hdfs://namenode:8020/", True),
        ("hdfs://namenode:80/elsewhere", "hdfs://namenode:8", False),
        ("hdfs://namenode/elsewhere", "hdfs://namenode/else", False),
    ],
)
def test_a_file_does_not_choose_the_hosts_that_are_asked(
    monkeypatch: pytest.MonkeyPatch, uri: str, trusted: str, allowed: bool
) -> None:
    monkeypatch.setenv("HVDSPARK_TRUSTED_STORES", trusted)
    store = Store("memory://here/models")
    written(store).commit({"tables_at": {"store": uri, "directory": "d"}})
    artifact = Artifact.open(store, "a")
    if allowed:
        assert artifact.tables_at == (Store(uri), "d")
    else:
        with pytest.raises(CheckpointError, match="not asked because a file names it.*Hint.*HVDSPARK_TRUSTED_STORES="):
            artifact.tables_at  # noqa: B018
    store.delete("a")


def test_tensors_that_are_none_are_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    written(store).commit({})
    artifact = Artifact.open(store, "a")
    for aliases in ({"tied": "nothing"}, {"tied": ""}):
        store.commit("a", {**artifact.manifest, "aliases": aliases})
        with pytest.raises(CheckpointError, match="not a file of tensors"):
            Artifact.open(store, "a").tensors()
    for content in (b"", b"\xff" * 8, (2**60).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"):
        store.write_bytes(f"a/{WEIGHTS}", content)
        with pytest.raises(CheckpointError, match="not a file of tensors"):
            artifact.tensors()
