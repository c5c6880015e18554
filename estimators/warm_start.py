"""The trained model that a fit begins with: where it is, and what of it can be taken over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import SparkSession
from torch import nn

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.model import DATA, inputs_of
from hvdspark.artifact.warm_start import compare
from hvdspark.errors import CheckpointError, ConfigurationError
from hvdspark.estimators.paths import spark_store
from hvdspark.models.click import ID_BITS, ClickModel
from hvdspark.specs import ColumnSpec, TrainSpec
from hvdspark.store import Store

_WHERE = "warmStartFrom"
_STAGES = "stages"  # of a saved pipeline, as Spark ML writes it
_OF_MLFLOW = re.compile(r"(models|runs|mlflow-artifacts):/")
_IN_A_STACK = re.compile(r"(network\..+)\.(\d+)\.\w+")


@dataclass(frozen=True)
class Beginning:
    """What a fit begins with.

    Attributes:
        spec: with what ranks take over.
        said: see `TrainResult.warm_start`.
        warnings: a sentence where something was not taken over.
    """

    spec: TrainSpec
    said: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()


def trained_before(spark: SparkSession, uri: str | None) -> Artifact | None:
    """The model to begin with; None where there is none.

    Raises:
        CheckpointError: there is no trained model of this or an earlier version.
        ConfigurationError: it is the URI of an MLflow model.
        StoreError: the URI cannot be read.
    """
    if uri is None:
        return None
    if _OF_MLFLOW.match(uri):
        hint = f"give the model itself: warmStartFrom=hvdspark.mlflow_flavor.load_model({uri!r})"
        raise ConfigurationError("MLflow alone knows where this is", value=uri, where=_WHERE, hint=hint)
    store = spark_store(spark, uri, _WHERE)
    parent, _, name = store.uri.rstrip("/").rpartition("/")
    if store.exists(DATA):
        artifact = Artifact.open(store, DATA)
    elif not store.exists() or not parent or parent.endswith("/") or store.exists(_STAGES):
        hint = "give a fitted model, its uri, or the path that it was saved to"
        if stages := store.list(_STAGES):
            hint = f"of a pipeline that was saved give one of its stages: {uri.rstrip('/')}/{_STAGES}/{stages[-1]}"
        raise CheckpointError("there is no trained model here", value=uri, where=_WHERE, hint=hint)
    else:
        artifact = Artifact.open(Store(parent, _WHERE), name)
    if "features" not in artifact.manifest.get("state", ["features"]):
        raise CheckpointError("an estimator was saved here, and nothing is trained", value=uri, where=_WHERE)
    return artifact


def begin(source: Artifact | None, spec: TrainSpec, module: nn.Module) -> Beginning:
    """How a fit begins.

    Args:
        source: `trained_before`.
        module: that is to be trained.

    Raises:
        ConfigurationError: it has nothing in common with the trained model.
        CheckpointError: the model cannot be read.
    """
    if source is None:
        return Beginning(spec)
    columns = [spec.dataset.column(name) for name in spec.features]
    others: set[str] = set()
    same_ids = True
    if isinstance(module, ClickModel):
        others = _of_other_columns(module, columns, source.manifest) | _renumbered(module, source)
        same_ids = "state" not in source.manifest or inputs_of(source.manifest["state"]).id_bits == ID_BITS
    compared = compare(source, module, others, same_ids=same_ids)
    return Beginning(replace(spec, warm_start=compared.taken), compared.as_dict(), tuple(compared.in_words()))


def _renumbered(module: ClickModel, source: Artifact) -> set[str]:
    """Weights of stacks of layers that got or lost dropout: their layers have the numbers of others, but for the first.

    In a stack that only became longer or shorter each layer keeps its number.
    """
    here, there = (_numbers_of_stacks(names) for names in (module.state_dict(), source.tensors()))
    shifted = {
        stack for stack in here.keys() & there.keys() if here[stack] - there[stack] and there[stack] - here[stack]
    }
    return {
        name
        for name in module.state_dict()
        if (found := _IN_A_STACK.fullmatch(name)) and found[1] in shifted and found[2] != "0"
    }


def _numbers_of_stacks(names: Iterable[str]) -> dict[str, set[str]]:
    """The numbers of the layers with weights in each stack of layers."""
    numbers: dict[str, set[str]] = {}
    for name in names:
        if found := _IN_A_STACK.fullmatch(name):
            numbers.setdefault(found[1], set()).add(found[2])
    return numbers


def _of_other_columns(module: ClickModel, columns: Sequence[ColumnSpec], manifest: Mapping[str, Any]) -> set[str]:
    """Dense weights of columns, where these are others than the model was trained on."""
    before = manifest.get("features", manifest.get("state", {}).get("features"))
    changed = {}
    for kind, whole in (("numbers", False), ("categories", True)):
        now = [column.name for column in columns if (column.dtype == "int64") == whole]
        changed[kind] = before is None or now != [
            column["name"] for column in before if (column["dtype"] == "int64") == whole
        ]
    return module.weights_of_columns(**changed)
