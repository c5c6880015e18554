"""A directory of weights and other files counts when it is complete, and is what it was when it was written."""

from __future__ import annotations

from pathlib import Path

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
