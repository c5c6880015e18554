"""Estimators, models and pipelines survive saving; what is damaged or unsafe is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import SparkSession
from torch import Tensor, nn

from hvdspark.errors import (
    CheckpointError,
    PersistenceError,
)
from hvdspark.estimators import TorchEstimator, TorchModel
from tests.manifests import rewritten
from tests.spark.toys import linear, scores, separable

pytestmark = pytest.mark.spark


def test_model_survives_saving_without_its_store(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    model = linear(numWorkers=1, storeUri=store_uri).fit(separable(spark))
    path = str(tmp_path / "saved model")
    model.save(path)
    before = scores(model.transform(separable(spark)))
    for entry in (tmp_path / "store").rglob("*.safetensors"):
        entry.unlink()
    loaded = TorchModel.load(path)
    assert loaded.uid == model.uid
    assert loaded.extractParamMap().keys() == model.extractParamMap().keys()
    assert scores(loaded.transform(separable(spark))) == before
    assert loaded.summary.history == model.summary.history
    assert not [file for file in Path(path).rglob("*") if "pickle" in file.name]


@pytest.mark.slow
def test_estimator_survives_saving(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    estimator = linear(numWorkers=1, storeUri=store_uri, epochs=1)
    estimator.write().overwrite().save(str(tmp_path / "e"))
    loaded = TorchEstimator.load(str(tmp_path / "e"))
    assert loaded.getEpochs() == 1
    assert loaded.getOptimizer().keywords == {"lr": 0.5}
    first, second = (e.fit(separable(spark)).module().state_dict()["0.weight"] for e in (estimator, loaded))
    assert torch.equal(first, second)


@pytest.mark.slow
def test_pipeline_with_sparks_own_stages(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    data = spark.range(0, 200, 1, 2).selectExpr("id", "id / 200.0 AS a", "CAST(id % 2 AS DOUBLE) AS y")
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=["a", "y"], outputCol="x"),
            linear(model=nn.Sequential(nn.Linear(2, 1)), numWorkers=1, storeUri=store_uri),
        ]
    )
    pipeline.save(str(tmp_path / "pipeline"))
    model = Pipeline.load(str(tmp_path / "pipeline")).fit(data)
    model.write().overwrite().save(str(tmp_path / "model"))
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert scores(loaded.transform(data)) == scores(model.transform(data))


@pytest.mark.slow
def test_a_class_without_an_import_path_needs_an_opt_in(
    spark: SparkSession, store_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with caplog.at_level("WARNING", "hvdspark"):
        model = linear(model=Local(), numWorkers=1, epochs=1, storeUri=store_uri).fit(separable(spark))
    (warning,) = [text for text in caplog.messages if "save will refuse it" in text]
    assert "no import path" in warning
    assert warning in model.summary.warnings
    with pytest.raises(PersistenceError, match=r"no import path.*Hint.*allowPickle.*setAllowPickle\(True\)"):
        model.save(str(tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()

    allowed = model.copy().setAllowPickle(True)
    allowed.save(str(tmp_path / "allowed"))
    with pytest.raises(PersistenceError, match=r"would run code.*Hint.*spark\.hvdspark\.allowPickle=true"):
        TorchModel.load(str(tmp_path / "allowed"))
    spark.conf.set("spark.hvdspark.allowPickle", "true")
    try:
        loaded = TorchModel.load(str(tmp_path / "allowed"))
    finally:
        spark.conf.unset("spark.hvdspark.allowPickle")
    assert scores(loaded.transform(separable(spark))) == scores(allowed.transform(separable(spark)))


def test_a_loaded_model_can_overwrite_what_it_was_loaded_from(
    spark: SparkSession, fitted: TorchModel, tmp_path: Path
) -> None:
    path, weight = str(tmp_path / "m"), fitted.module().state_dict()["0.weight"]
    fitted.save(path)
    TorchModel.load(path).setPredictionCol("p").write().overwrite().save(path)
    assert TorchModel.load(path).getPredictionCol() == "p"
    assert torch.equal(TorchModel.load(path).module().state_dict()["0.weight"], weight)

    pipeline = str(tmp_path / "pipeline")
    PipelineModel(stages=[fitted]).save(pipeline)
    PipelineModel.load(pipeline).write().overwrite().save(pipeline)
    stage = PipelineModel.load(pipeline).stages[0]
    assert isinstance(stage, TorchModel)
    assert torch.equal(stage.module().state_dict()["0.weight"], weight)


def test_what_cannot_be_saved_does_not_delete_what_was(spark: SparkSession, tmp_path: Path) -> None:
    path, net = str(tmp_path / "e"), type("Net", (nn.Linear,), {"__module__": "__main__"})
    linear().save(path)
    with pytest.raises(PersistenceError, match="no import path.*Hint.*allowPickle"):
        linear(model=net(3, 1)).write().overwrite().save(path)
    assert isinstance(TorchEstimator.load(path).getModel(), nn.Sequential)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "manifest.json").unlink(), "no complete model"),
        (lambda data: (data / "weights.safetensors").unlink(), "cannot be read"),
        (lambda data: (data / "weights.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda data: rewritten(data / "manifest.json", lambda said: said.update(format=99)), "newer format"),
    ],
)
def test_a_damaged_model_is_refused(
    spark: SparkSession, fitted: TorchModel, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    fitted.save(str(tmp_path / "m"))
    damage(tmp_path / "m" / "data")
    with pytest.raises(CheckpointError, match=message):
        TorchModel.load(str(tmp_path / "m"))


def test_class_paths_on_disk_do_not_change(fitted: TorchModel, tmp_path: Path) -> None:
    fitted.save(str(tmp_path / "m"))
    (metadata,) = (tmp_path / "m" / "metadata").glob("part-*")
    assert json.loads(metadata.read_text())["class"] == "hvdspark.estimators.TorchModel"
