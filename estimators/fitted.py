"""What a fitted model is made of: a place in the store and plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from hvdspark.artifact.directory import WEIGHTS, Artifact, fingerprint_of
from hvdspark.artifact.inputs import Inputs
from hvdspark.artifact.model import DATA, inputs_of, state_of
from hvdspark.artifact.objects import weights_of
from hvdspark.artifact.tables import load_model
from hvdspark.artifact.tensors import checksum
from hvdspark.artifact.trust import Trust
from hvdspark.estimators.persistence import Saved, pack, unpack
from hvdspark.score import MODELS_PLACE, ScoringSpec
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
        numbers, categories, id_bits: which features come raw, see `artifact.inputs.Inputs`.
        most_rows: of one call of the module when it scores; None leaves it to Spark's batches.
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
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    id_bits: int = 0
    most_rows: int | None = None
    fingerprint: str = ""
    saved: Saved | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.fingerprint:
            artifact = Artifact.open(self.store, self.model_path)
            object.__setattr__(self, "fingerprint", artifact.fingerprint)

    @property
    def store(self) -> Store:
        return Store(self.store_uri, MODELS_PLACE)

    @property
    def uri(self) -> str:
        return self.store.spark_uri(self.model_path)

    @property
    def inputs(self) -> Inputs:
        return Inputs(self.features, self.types, self.numbers, self.categories, self.id_bits)

    @property
    def outputs(self) -> tuple[ModelOutput, ...]:
        return tuple(ModelOutput(output.name, output.shape not in ((), (1,))) for output in self.result.outputs)

    def renamed(self, names: Sequence[str]) -> FittedModule:
        """The same for columns of other names, in the order of `features`."""
        now = dict(zip([column.name for column in self.features], names, strict=True))
        if all(before == name for before, name in now.items()):
            return self
        renamed = replace(
            self,
            features=tuple(replace(column, name=now[column.name]) for column in self.features),
            types={now[name]: kind for name, kind in self.types.items()},
            numbers=tuple(now[name] for name in self.numbers),
            categories=tuple(now[name] for name in self.categories),
        )
        if self.saved is None:
            return renamed
        state = {**self.saved.state, **state_of(self.saved.state["objects"], renamed.inputs)}
        return replace(renamed, saved=replace(self.saved, state=state))

    def module(self) -> nn.Module:
        return load_model(self.store, self.model_path, unpickled(self.skeleton), self.fingerprint)

    def scoring_spec(self, handle_invalid: str) -> ScoringSpec:
        return ScoringSpec(
            store_uri=self.store_uri,
            model_path=self.model_path,
            fingerprint=self.fingerprint,
            skeleton=self.skeleton,
            features=self.features,
            handle_invalid=handle_invalid,
            most_rows=self.most_rows,
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
        objects, files = pack({"module": module}, weights_of(module), allow_pickle)
        artifact = Artifact.open(self.store, self.model_path, self.fingerprint)
        state = {**state_of(objects, self.inputs), "result": json.loads(to_json(self.result))}
        if self.most_rows is not None:
            state["most_rows"] = self.most_rows
        return Saved(
            state,
            {**files, WEIGHTS: artifact.read(WEIGHTS)},
            artifact.manifest["aliases"],
            artifact.tables,
            (self.store_uri, self.model_path),
        )

    @classmethod
    def from_saved(cls, saved: Saved, store: Store, trust: Trust) -> FittedModule:
        """Raises PersistenceError when a pickle would have to be loaded, or code to be used, that is not trusted."""
        module = unpack(saved.state["objects"], saved.files, trust)["module"]
        result, inputs = from_json(TrainResult, json.dumps(saved.state["result"])), inputs_of(saved.state)
        return cls(
            store_uri=store.uri,
            model_path=DATA,
            skeleton=skeleton(module),
            features=inputs.features,
            result=replace(result, model_path=DATA),
            types=inputs.types,
            numbers=inputs.numbers,
            categories=inputs.categories,
            id_bits=inputs.id_bits,
            most_rows=saved.state.get("most_rows"),
            fingerprint=fingerprint_of(checksum(saved.files[WEIGHTS]), saved.tables),
            saved=saved,
        )
