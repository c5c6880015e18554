"""A target that is Spark ML's metadata of a saved stage. Spark only reads the line; the rest is what `load` does."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyspark
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter
from torch import nn

from hvdspark.estimators import TorchEstimator, persistence
from hvdspark.estimators import metadata as metadata_of
from hvdspark.store import Store
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.fuzz.target import AS_TOLD, RIGHT, Target


class SavedStage(Target):
    """The estimator that was saved, or an error: never an attribute that is no Param."""

    name = "saved stage"

    def __init__(self, folder: Path) -> None:
        self._store = Store(str(folder))
        self._stage = TorchEstimator(
            model=nn.Linear(2, 1), featureCols=["a", "b"], labelCol="y", storeUri="file:///s", numWorkers=2, seed=7
        )
        session: Any = SimpleNamespace(version=pyspark.__version__)
        self._text = str(DefaultParamsWriter._get_metadata_to_save(self._stage, session))
        self._store.write_text("metadata/part-00000", self._text)
        if self._load(self._text) != RIGHT:
            raise AssertionError("not right as it was written")

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        if rng.random() < 0.7:
            text, words = mutated_json(json.loads(self._text), rng)
        else:
            content, words = mutated_bytes(self._text.encode(), rng)
            text = content.decode(errors="replace")
        return words, lambda: self._load(text)

    def _load(self, text: str) -> str:
        def parsed(*_: Any) -> Any:
            return DefaultParamsReader._parseMetaData(text)

        with mock.patch.object(DefaultParamsReader, "loadMetadata", parsed):
            metadata = persistence.read_metadata(None, self._store, "path")  # type: ignore[arg-type]
        before = set(vars(TorchEstimator()))
        stage = TorchEstimator()
        with metadata_of.damage_named("path"):
            metadata_of.set_params(stage, metadata, "hvdspark 0")
        if set(vars(stage)) - before:
            raise AssertionError(f"attributes appeared: {set(vars(stage)) - before}")
        same = metadata["class"] == "hvdspark.estimators.TorchEstimator" and _params(stage) == _params(self._stage)
        return RIGHT if same else AS_TOLD


def _params(stage: TorchEstimator) -> dict[str, str]:
    return {param.name: repr(value) for param, value in stage.extractParamMap().items()}
