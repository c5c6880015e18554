"""Fitted models without a session: those that hvdspark 0.1.0 saved, and small ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.ml.util import DefaultParamsReader
from torch import nn

import hvdspark.estimators
import tests.unit.artifact.saved_before  # noqa: F401  a class that is imported is one that a save may name
from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.forward import OutputSpec
from hvdspark.artifact.model import DATA
from hvdspark.artifact.trust import Trust
from hvdspark.artifact.weights import write_weights
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.persistence import Saved
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store
from hvdspark.train.pickling import skeleton
from hvdspark.train.program import TrainResult

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "fixtures" / "models-0.1.0"
KNOWN: dict[str, Any] = json.loads((FOLDER / "predictions.json").read_text())


def rows() -> pd.DataFrame:
    """The rows that `KNOWN` has predictions for, with the vector "v" of the pipeline's first stage."""
    frame = pd.DataFrame(KNOWN["rows"])
    return frame.assign(v=[[a, b] for a, b in zip(frame["a"], frame["b"], strict=True)])


def saved_before(name: str) -> Any:
    """A model that hvdspark 0.1.0 saved, as `load` gives it."""
    store = Store(str(FOLDER / name))
    (file,) = (FOLDER / name / "metadata").glob("part-*")
    metadata = json.loads(file.read_text())
    artifact = Artifact.open(store, DATA)
    files = {name: artifact.read(name) for name in artifact.manifest["files"]}
    model = getattr(hvdspark.estimators, metadata["class"].rpartition(".")[2])()
    DefaultParamsReader.getAndSetParams(model, metadata)
    manifest = artifact.manifest
    saved = Saved(manifest["state"], files, manifest["aliases"], artifact.tables, (store.uri, DATA))
    model._restore(saved, store, Trust())
    return model


def small_model(
    name: str,
    folder: Path,
    module: nn.Module,
    features: list[ColumnSpec],
    *,
    types: dict[str, str],
    width: int = 0,
    loss: str = "",
) -> Any:
    """A fitted model of the class of that name, with the weights that the module has; it returns [rows(, width)]."""
    store = Store((folder / "store").as_uri())
    write_weights(store, "m", module, {})
    output = OutputSpec(None, (width,) if width else (), "float32")
    result = TrainResult((), 0, 0, None, "m", (output,), "float32", 1, {}, loss=loss)
    model = getattr(hvdspark.estimators, name)()
    model._fitted = FittedModule(store.uri, "m", skeleton(module), tuple(features), result, types)
    return model
