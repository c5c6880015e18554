"""Structured Streaming: models score a stream of files as they score a table; a fit on one is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

import tests.unit.artifact.saved_before  # noqa: F401  a class that is imported is one that a save may name
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import (
    CTRClassificationModel,
    CTRClassifier,
    TorchClassificationModel,
    TorchClassifier,
    TorchModel,
    TorchRegressionModel,
    TorchRegressor,
)
from tests.spark.toys import linear, scores, separable

pytestmark = pytest.mark.spark

SAVED = Path(__file__).parent.parent / "fixtures" / "models-0.1.0"
KNOWN = json.loads((SAVED / "predictions.json").read_text())
MODELS: dict[str, Any] = {"deepfm": CTRClassificationModel, "tables": TorchModel}


def rows(spark: SparkSession) -> DataFrame:
    names = KNOWN["rows"][0]
    return spark.createDataFrame([tuple(row[name] for name in names) for row in KNOWN["rows"]], KNOWN["schema"])


def as_text(frame: DataFrame) -> list[str]:
    """Rows in any order; scores to 1e-6, because the last bits of one may follow the rows beside it."""

    def rounded(value: Any) -> Any:
        if hasattr(value, "toArray"):
            return [rounded(number) for number in value]
        return round(value, 6) if isinstance(value, float) else value

    return sorted(str([rounded(value) for value in row]) for row in frame.collect())


def scored_so_far(model: Any, folder: Path) -> None:
    """Score the files of `folder/in` that no run before has scored; add them to `folder/out`."""
    spark = SparkSession.active()
    stream = spark.readStream.schema(KNOWN["schema"]).parquet(str(folder / "in"))
    writer = model.transform(stream).writeStream.trigger(availableNow=True).format("parquet")
    query = writer.option("checkpointLocation", str(folder / "checkpoint")).start(str(folder / "out"))
    try:
        assert query.awaitTermination(60)
    finally:
        query.stop()


@pytest.mark.parametrize("name", ["deepfm", pytest.param("tables", marks=pytest.mark.slow)])
def test_files_are_scored_as_they_arrive(spark: SparkSession, tmp_path: Path, name: str) -> None:
    model, data = MODELS[name].load(str(SAVED / name)), rows(spark).coalesce(1)
    first, second = data.where("user < 0"), data.where("user >= 0")
    for arrived in (first, second):
        arrived.write.mode("append").parquet(str(tmp_path / "in"))
        scored_so_far(model, tmp_path)
    found = spark.read.parquet(str(tmp_path / "out"))
    expected = model.transform(data)
    assert [(field.name, field.dataType) for field in found.schema] == [
        (field.name, field.dataType) for field in expected.schema
    ]
    assert as_text(found) == as_text(expected), "each row once"


def renamed(model: Any, name: str) -> Any:
    """The model with output columns that begin with a name."""
    params = [model.predictionCol]
    if isinstance(model, CTRClassificationModel | TorchClassificationModel):
        params += [model.probabilityCol, model.rawPredictionCol]
    return model.copy({param: f"{name} {param.name}" for param in params})


@pytest.mark.slow
def test_a_pipeline_of_every_kind_of_model_scores_a_stream(spark: SparkSession, tmp_path: Path) -> None:
    kinds = {"lr": CTRClassificationModel, "classifier": TorchClassificationModel}
    kinds |= {"regressor": TorchRegressionModel, "from-module": TorchModel}
    models = [renamed(cls.load(str(SAVED / name)), name) for name, cls in kinds.items()]
    # Those of the saved pipeline are a VectorAssembler, a TorchModel and a click model.
    pipeline = PipelineModel([*PipelineModel.load(str(SAVED / "pipeline")).stages, *models])
    data = rows(spark).coalesce(1)
    data.write.parquet(str(tmp_path / "in"))
    scored = pipeline.transform(spark.readStream.schema(KNOWN["schema"]).parquet(str(tmp_path / "in")))
    query = scored.writeStream.trigger(availableNow=True).format("memory").queryName("scored").start()
    try:
        assert query.awaitTermination(60)
        assert as_text(spark.table("scored")) == as_text(pipeline.transform(data))
    finally:
        query.stop()
        spark.catalog.dropTempView("scored")


@pytest.mark.slow
def test_batches_of_a_stream_are_fitted(spark: SparkSession, tmp_path: Path, store_uri: str) -> None:
    separable(spark, rows=200).write.parquet(str(tmp_path / "in"))
    stream = spark.readStream.schema(separable(spark).schema).parquet(str(tmp_path / "in"))
    models = []

    def learn(batch: DataFrame, batch_id: int) -> None:
        models.append(linear(storeUri=store_uri, numWorkers=1).fit(batch))

    query = stream.writeStream.trigger(availableNow=True).foreachBatch(learn).start()
    try:
        assert query.awaitTermination(120)
    finally:
        query.stop()
    assert [model.summary.history[-1]["rows"] for model in models] == [200]
    assert len(scores(models[0].transform(separable(spark, rows=10)))) == 10


REFUSING = [linear(), TorchClassifier(model=nn.Linear(3, 1)), TorchRegressor(model=nn.Linear(3, 1)), CTRClassifier()]


@pytest.mark.parametrize("estimator", REFUSING, ids=lambda estimator: type(estimator).__name__)
def test_a_fit_on_a_stream_is_refused(spark: SparkSession, estimator: Any) -> None:
    stream = spark.readStream.format("rate").load().select(F.col("value").alias("y"))
    started = time.monotonic()
    with pytest.raises(ConfigurationError, match="a stream has no end.*Hint: .*spark.read.*foreachBatch"):
        estimator.fit(stream)
    assert time.monotonic() - started < 5
