"""The examples are programs that people copy: they run, and reach what they promise."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def example(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """`example("census")` imports examples/census.py, for the driver and for Spark's Python workers."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(name: str) -> ModuleType:
        spark.sparkContext.addPyFile(str(EXAMPLES / f"{name}.py"))
        return importlib.import_module(name)

    yield load
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_adult_census(
    spark: SparkSession, example: Callable[[str], ModuleType], real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    census = example("census")
    train, test = (census.read_adult(spark, str(real_data("adult") / f"adult.{split}")) for split in ("data", "test"))
    assert (train.count(), test.count()) == (32_561, 16_281)
    evaluator = BinaryClassificationEvaluator(rawPredictionCol="prediction", numBins=0)
    auc = {}
    for workers in (1, 2):
        model = census.pipeline(workers, (tmp_path / "store").as_uri(), epochs=8).fit(train)
        auc[workers] = evaluator.evaluate(model.transform(test))
    print(f"Adult test AUC: {auc}")
    assert auc[2] >= 0.905
    assert abs(auc[2] - auc[1]) <= 0.003
    model.write().overwrite().save(str(tmp_path / "pipeline"))
    loaded = PipelineModel.load(str(tmp_path / "pipeline"))
    assert evaluator.evaluate(loaded.transform(test)) == auc[2]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_adult_census_from_raw_columns(
    spark: SparkSession, example: Callable[[str], ModuleType], real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    census = example("census")
    train, test = (census.read_adult(spark, str(real_data("adult") / f"adult.{split}")) for split in ("data", "test"))
    model = census.ctr_pipeline(2, (tmp_path / "store").as_uri(), epochs=8).fit(train)
    auc = BinaryClassificationEvaluator(numBins=0).evaluate(model.transform(test))
    print(f"Adult test AUC of CTRClassifier: {auc}")
    assert auc >= 0.905


@pytest.mark.slow  # test_readme.py fits and scores the same way
def test_demo(
    spark: SparkSession, example: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("click_data")
    clicks = example("clicks")
    clicks.run(
        spark, clicks.parse(["--rows", "120000", "--epochs", "2", "--store", (tmp_path / "store").as_uri()]), tmp_path
    )
    output = capsys.readouterr().out
    reached, reachable = map(float, re.findall(r"test AUC (\S+), best reachable (\S+)", output)[0])
    assert 0.68 < reached < reachable


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clicks_in_mlflow(
    spark: SparkSession,
    example: Callable[[str], ModuleType],
    mlflow_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("click_data", "clicks"):
        example(name)
    clicks = example("clicks_mlflow")
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)  # what set_experiment sets
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # and this
    small = ["--rows", "5000", "--epochs", "2", "--experiment", "example"]
    try:
        clicks.run(spark, clicks.parse(["--tracking", mlflow_uri, *small]), tmp_path)
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the environment's again
    (apart,) = re.findall(r"without Spark are (\S+) apart", capsys.readouterr().out)
    assert float(apart) <= 1e-6

    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("example").experiment_id
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    by_name = {run.info.run_name: run for run in runs.values()}
    parents = [run.data.tags.get("mlflow.parentRunId") for run in runs.values()]
    tuned = by_name["learning rate"]
    assert parents.count(tuned.info.run_id) == 4, "two learning rates in two folds"
    assert set(by_name) == {"clicks", "learning rate", "learningRate=0.0005", "learningRate=0.005"}
    assert parents.count(None) == 2
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for run in (by_name["clicks"], tuned):
        assert {"test_auc", "train_loss", "val_auc"} <= run.data.metrics.keys()
        assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 2
    champion = client.get_model_version_by_alias("clicks", "champion")
    assert champion.run_id == tuned.info.run_id


def test_synthetic_clicks_have_the_criteo_format(example: Callable[[str], ModuleType], tmp_path: Path) -> None:
    data = example("click_data")
    drawn = data.draw(20_000, seed=3)
    data.write(drawn, tmp_path / "clicks.txt")
    lines = (tmp_path / "clicks.txt").read_text().splitlines()
    assert len(lines) == 20_000
    fields = [line.split("\t") for line in lines]
    assert {len(row) for row in fields} == {40}
    assert {row[0] for row in fields} == {"0", "1"}
    assert all(re.fullmatch(r"\d*", field) for row in fields[:500] for field in row[1:14])
    assert all(re.fullmatch(r"([0-9a-f]{8})?", field) for row in fields[:500] for field in row[14:])
    assert any(row[14 + 2] == "" for row in fields), "there are gaps"
    assert drawn.labels.mean() == pytest.approx(data.CLICK_RATE, abs=0.02)
    assert np.array_equal(data.draw(20_000, seed=3).labels, drawn.labels)


def test_exact_auc(example: Callable[[str], ModuleType]) -> None:
    auc = example("click_data").exact_auc
    labels = np.array([0, 0, 1, 1])
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), labels) == 0.5
    assert auc(np.array([1.0, 2.0, 3.0, 4.0]), labels) == 1.0
