"""A saved model that stands by itself. `test_without_spark.py` scores with it where there is nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact import TrainedModel, Trust
from hvdspark.artifact.directory import WEIGHTS, ArtifactWriter
from hvdspark.artifact.inputs import Inputs
from hvdspark.artifact.model import DATA, state_of
from hvdspark.artifact.objects import pack, weights_of
from hvdspark.artifact.weights import write_weights
from hvdspark.errors import CheckpointError, DataError, PersistenceError, StoreError
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from tests.manifests import said_in

INPUTS = Inputs((ColumnSpec("x", "float32", "scalar"), ColumnSpec("y", "float32", "scalar")))


class Scaled(nn.Module):
    """A sum times a tensor that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(()))
        self.factor = torch.tensor([2.0])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x + y) * self.factor + self.bias


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What `model.save` writes of `Scaled`, but for Spark's own metadata."""
    store, module = Store(str(tmp_path)), Scaled()
    objects, files = pack({"module": module}, weights_of(module))
    writer = ArtifactWriter(store, DATA)
    writer.tensors(WEIGHTS, module.state_dict())
    for name, content in files.items():
        writer.file(name, content)
    writer.commit({"state": state_of(objects, INPUTS)})
    return tmp_path


def test_it_predicts(saved: Path) -> None:
    (found,) = TrainedModel.read(str(saved)).predict({"x": [1, 2, 3], "y": [0.5, 0.5, 0.5]})
    assert found.tolist() == [4, 6, 8]


def test_a_row_that_is_alone_is_not_repeated(saved: Path) -> None:
    model = TrainedModel.read(str(saved))
    for short in ("x", "y"):
        with pytest.raises(DataError, match="different numbers of rows: .* in 'x', .* in 'y'"):
            model.predict({"x": [1, 2, 3], "y": [4, 5, 6], short: [7]})


@pytest.mark.parametrize("name", ["objects.safetensors", WEIGHTS])
def test_a_damaged_file_is_named(saved: Path, name: str) -> None:
    path = saved / DATA / name
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=name):
        TrainedModel.read(str(saved))
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=name):
        TrainedModel.read(str(saved))


def test_weights_of_a_fit_are_no_saved_model(tmp_path: Path) -> None:
    write_weights(Store(str(tmp_path)), "runs/r/model", Scaled(), {})
    with pytest.raises(PersistenceError, match=r"weights alone.*runs/r/model.*Hint: model\.save\(path\)"):
        TrainedModel.read(str(tmp_path / "runs" / "r" / "model"))


def test_errors_name_what_was_given(saved: Path) -> None:
    with pytest.raises(StoreError, match=r"unknown scheme of a store URI: 's4' \(in path\)"):
        TrainedModel.read("s4://bucket/model")
    manifest = saved / DATA / "manifest.json"
    said = json.dumps(said_in(manifest))
    manifest.write_text(said.replace("tests.unit.artifact.test_model:Scaled", "nowhere.layers:Net"))
    with pytest.raises(PersistenceError, match=r"does not trust: 'nowhere\.layers:Net'.*trust=Trust\(\('nowhere',\)\)"):
        TrainedModel.read(str(saved))
    with pytest.raises(PersistenceError, match="cannot import a part of the saved model: 'nowhere.layers:Net'"):
        TrainedModel.read(str(saved), Trust(("nowhere",)))
