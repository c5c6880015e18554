"""A trained model that stands by itself: its module, what that takes, and its rows. Needs no Spark.

>>> from hvdspark.artifact import TrainedModel
>>> model = TrainedModel.read("s3://bucket/models/clicks")  # what `model.save(path)` wrote
>>> rows = {"price": [9.9, 120.0], "user": [7, 8], "page": ["home", "cart"]}
>>> (logits,) = model.predict(rows)
>>> model.classify(rows).probability  # [rows, classes]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hvdspark.artifact.classes import Classes, ClassRule
from hvdspark.artifact.directory import Artifact, verify_file
from hvdspark.artifact.forward import predictions
from hvdspark.artifact.inputs import Inputs, Values
from hvdspark.artifact.objects import TENSORS, unpack
from hvdspark.artifact.tables import load_model, verify_tables
from hvdspark.artifact.trust import Trust
from hvdspark.errors import ConfigurationError, PersistenceError
from hvdspark.specs import ColumnSpec
from hvdspark.store import MANIFEST, Store

DATA = "data"  # of a directory that Spark ML's `save` makes; beside it are Spark's own `metadata`
_NOTHING = Trust()

# Click models that were saved before a model said which of its columns are raw.
_CLICK_MODEL, _ID_BITS = "hvdspark.models.click:ClickModel", 52


@dataclass(frozen=True)
class TrainedModel:
    """A trained module on this machine, and what it takes.

    Attributes:
        module: in evaluation mode; sharded embedding tables are looked up in their files.
        inputs: what its arguments are made of.
        rule: how classes are read off what it returns; None where it is no classifier.
    """

    module: nn.Module
    inputs: Inputs
    rule: ClassRule | None = None

    @classmethod
    def read(cls, path: str, trust: Trust = _NOTHING) -> TrainedModel:
        """A fitted model of this or an earlier version.

        Args:
            path: directory or URI that the model was saved to.
            trust: which code its description may name.

        Raises:
            CheckpointError: there is no complete model, it is damaged, or a later version wrote it.
            PersistenceError: it was saved with pickle, or names code that is not trusted or not there; or these are the
                weights of a fitted model that was not saved.
        """
        store = Store(path, "path")
        if store.exists(MANIFEST) and not store.exists(DATA):
            raise PersistenceError(
                "these are weights alone, such as a fit leaves in its store",
                value=store.spark_uri(),
                hint="model.save(path) writes what is read here",
            )
        artifact = Artifact.open(store, DATA)
        state = artifact.manifest.get("state", {})
        if "module" not in state.get("objects", {}):
            raise PersistenceError(
                "no model is described here",
                value=store.spark_uri(),
                hint="save a fitted model here, without allowPickle: a pickle is loaded in a Spark session alone",
            )
        files = {}
        if TENSORS in (known := artifact.manifest["files"]):
            verify_file(store, f"{DATA}/{TENSORS}", known[TENSORS])
            files[TENSORS] = artifact.read(TENSORS)
        module: nn.Module = unpack(state["objects"], files, trust)["module"]
        verify_tables(artifact)
        module = load_model(store, DATA, module, artifact.fingerprint)
        return cls(module, inputs_of(state), ClassRule.of_state(state))

    def predict(self, columns: Mapping[str, Values], *, keep: bool = False) -> list[NDArray[np.float64]]:
        """What the module returns for some rows: float64 [rows], or [rows, k], for each of its outputs.

        As `transform` has it before it makes classes and probabilities of that; of a click model logits.

        Args:
            columns: by name, each with one value for each row. Raw ones as the user has them: numbers, and strings,
                integers or booleans, or lists of these. Others as numbers or arrays in the types of training.
            keep: what handleInvalid="keep" is: null and NaN are values to the model. Else they raise.

        Raises:
            DataError: a column is missing or longer than another one, or a value is none that the model was trained on.
        """
        tensors = self.inputs.tensors(columns, keep=keep)
        names = [column.name for column in self.inputs.features]
        return predictions(self.module, tensors, names, len(columns[names[0]]))

    def classify(self, columns: Mapping[str, Values], *, keep: bool = False) -> Classes:
        """What a classifier says of some rows: what `transform` adds for each row, with the model's own thresholds.

        Args:
            columns, keep: as of `predict`.

        Raises:
            ConfigurationError: the model is no classifier.
            DataError: as `predict`.
        """
        if self.rule is None:
            raise ConfigurationError(
                "the model was not trained to tell classes apart", hint="predict gives what its module returns"
            )
        return self.rule.classes(self.predict(columns, keep=keep)[0])


def state_of(objects: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    """What a manifest says under `state` about a model.

    Args:
        objects: `objects.pack` of the module, as "module".
    """
    raw = {"numbers": list(inputs.numbers), "categories": list(inputs.categories), "id_bits": inputs.id_bits}
    return {
        "objects": dict(objects),
        "features": [asdict(column) for column in inputs.features],
        "types": dict(inputs.types),
        "raw": raw,
    }


def inputs_of(state: Mapping[str, Any]) -> Inputs:
    """What the module of a model takes, from `state_of`, of this or an earlier version."""
    features = tuple(ColumnSpec(**column) for column in state["features"])
    types = state.get("types", {})
    if "raw" in state:
        raw = state["raw"]
        return Inputs(features, types, tuple(raw["numbers"]), tuple(raw["categories"]), raw["id_bits"])
    description = state["objects"].get("module")
    if not isinstance(description, dict) or description.get("module") != _CLICK_MODEL:
        return Inputs(features, types)
    count = dict(description["given"])["numbers"]
    names = [column.name for column in features]
    return Inputs(features, types, tuple(names[:count]), tuple(names[count:]), _ID_BITS)
