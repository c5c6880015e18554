"""What a fitted model is made of: a place in the store and plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from hvdspark.artifact import objects as architecture
from hvdspark.artifact.tables import TABLES, load_model
from hvdspark.artifact.trust import Trust
from hvdspark.artifact.weights import WEIGHTS, check_unchanged, checksum, read_manifest
from hvdspark.artifact.weights import fingerprint as fingerprint_of
from hvdspark.estimators.persistence import DATA, Saved, pack, unpack
from hvdspark.score import ScoringSpec
from hvdspark.specs import ColumnSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.pickling import skeleton, unpickled
from hvdspark.train.program import TrainResult


@dataclass(frozen=True)
class ModelOutput:
    """One output column: key of a dict output or None, and whether it holds a vector for each row."""

    name: str | None
    is_vector: bool


@dataclass(frozen=True)
class FittedModule:
    """A trained module without its weights, and where those are.

    Attributes:
        store_uri, model_path: the committed directory with `weights.safetensors`.
        skeleton: the module without weights, pickled in memory; never written to disk as such.
        features: columns in the order of the module's arguments.
        result: of the training run.
        types: Spark's types of the features in training, by name; empty where the model was saved without.
        fingerprint: of the weights; those at `model_path` when this object was made, unless it is given.
        saved: what this was loaded from. Kept, because a pipeline that is saved over the one that it was loaded from
            deletes that before it asks its stages what to write.
    """

    store_uri: str
    model_path: str
    skeleton: bytes
    features: tuple[ColumnSpec, ...]
    result: TrainResult
    types: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    saved: Saved | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.fingerprint:
            manifest = read_manifest(Store(self.store_uri), self.model_path)
            object.__setattr__(self, "fingerprint", fingerprint_of(manifest))

    @property
    def uri(self) -> str:
        return Store(self.store_uri).spark_uri(self.model_path)

    @property
    def outputs(self) -> tuple[ModelOutput, ...]:
        return tuple(ModelOutput(output.name, output.shape not in ((), (1,))) for output in self.result.outputs)

    def module(self) -> nn.Module:
        return load_model(Store(self.store_uri), self.model_path, unpickled(self.skeleton), self.fingerprint)

    def scoring_spec(self, handle_invalid: str) -> ScoringSpec:
        return ScoringSpec(
            self.store_uri, self.model_path, self.fingerprint, self.skeleton, self.features, handle_invalid
        )

    def to_saved(self, allow_pickle: bool) -> Saved:
        """What `save` writes.

        Raises:
            PersistenceError: the module cannot be described and pickle is not allowed.
            CheckpointError: the weights are no longer in the store.
        """
        if self.saved is not None:
            return self.saved
        module: nn.Module = unpickled(self.skeleton)
        objects, files = pack({"module": module}, architecture.weights_of(module), allow_pickle)
        store = Store(self.store_uri)
        manifest = read_manifest(store, self.model_path)
        check_unchanged(store, self.model_path, manifest, self.fingerprint)
        state: dict[str, Any] = {
            "objects": objects,
            "features": [asdict(column) for column in self.features],
            "result": json.loads(to_json(self.result)),
            "types": dict(self.types),
        }
        weights = store.read_bytes(f"{self.model_path}/{WEIGHTS}")
        tables_at = (self.store_uri, self.model_path)
        return Saved(state, {**files, WEIGHTS: weights}, manifest["aliases"], manifest.get(TABLES, []), tables_at)

    @classmethod
    def from_saved(cls, saved: Saved, store: Store, trust: Trust) -> FittedModule:
        """Raises PersistenceError when a pickle would have to be loaded, or code to be used, that is not trusted."""
        module = unpack(saved.state["objects"], saved.files, trust)["module"]
        result = from_json(TrainResult, json.dumps(saved.state["result"]))
        return cls(
            store_uri=store.uri,
            model_path=DATA,
            skeleton=skeleton(module),
            features=tuple(ColumnSpec(**column) for column in saved.state["features"]),
            result=replace(result, model_path=DATA),
            types=saved.state.get("types", {}),
            fingerprint=fingerprint_of({"files": {WEIGHTS: checksum(saved.files[WEIGHTS])}, TABLES: saved.tables}),
            saved=saved,
        )
