"""Fitted models in a real MLflow: logged, registered, a Transformer again, and scored as pandas.

What is in a saved model, and what is refused, is in tests/unit/mlflow_flavor.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
import mlflow.spark
import numpy as np
import pandas as pd
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession

from hvdspark import mlflow_flavor
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier, TorchModel
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark

SCHEMA = "id int, price double, stock int, user bigint, page string, member boolean, tags array<string>, label double"
PAGES = ["", "home", "Ünïcödé", "日本語", None]


def clicks(spark: SparkSession) -> DataFrame:
    """Numbers, integers, strings, booleans and arrays of strings, with gaps everywhere but in the label."""
    tags = [["x", None], ["home"], [], ["y"], ["x", "y"], None]

    def gaps(value: Any, k: int, every: int) -> Any:
        return None if k % every == 3 else value

    rows = [
        (
            *(k, gaps(k % 7 / 4.0, k, 11), gaps(k * k - 30, k, 13), gaps(k % 4, k, 9), PAGES[k % 5]),
            *(gaps(k % 3 == 0, k, 8), tags[k % 6], float(k % 4 > 1)),
        )
        for k in range(60)
    ]
    return spark.createDataFrame(rows, SCHEMA).coalesce(1)


@pytest.fixture
def server(experiment: str) -> None:
    """MLflow as a user who writes to the server has it."""


@pytest.fixture(scope="module")
def model(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> CTRClassificationModel:
    classifier = CTRClassifier(
        continuousCols=["price", "stock"],
        categoricalCols=["user", "page", "member", "tags"],
        handleInvalid="keep",
        embeddingDim=3,
        hiddenUnits=[4],
        epochs=2,
        batchSize=16,
        storeUri=tmp_path_factory.mktemp("store").as_uri(),
        threshold=0.4,
    )
    return classifier.fit(clicks(spark))


def as_pandas(frame: DataFrame) -> pd.DataFrame:
    """The rows with vectors as lists."""
    rows = frame.toPandas().set_index("id")
    return rows.map(lambda value: value.toArray().tolist() if hasattr(value, "toArray") else value)


def given(frame: DataFrame) -> pd.DataFrame:
    """The rows as a user has them in pandas."""
    return frame.toPandas().set_index("id")


def assert_same_scores(found: pd.DataFrame, scored: pd.DataFrame) -> None:
    assert found.index.tolist() == scored.index.tolist()
    for name in found:
        np.testing.assert_allclose(found[name].tolist(), scored[name].tolist(), rtol=0, atol=1e-6)


def test_logged_and_registered_it_is_loaded_as_both(
    spark: SparkSession, server: None, model: CTRClassificationModel, caplog: pytest.LogCaptureFixture
) -> None:
    frame = clicks(spark)
    caplog.set_level(logging.WARNING, "mlflow")
    with mlflow.start_run() as run:
        info = mlflow_flavor.log_model(
            model,
            name="clicks",
            registered_model_name="clicks",
            registered_model_alias="champion",
            input_example=frame,
            params={"why": "a test"},
        )
    assert not [line for line in caplog.messages if "serving input" in line]
    assert info.run_id == run.info.run_id
    assert mlflow.MlflowClient().get_model_version_by_alias("clicks", "champion").version == "1"
    expected = as_pandas(model.transform(frame))

    loaded = mlflow_flavor.load_model("models:/clicks@champion")
    assert isinstance(loaded, CTRClassificationModel)
    assert (loaded.uid, loaded.getThreshold(), loaded.getHandleInvalid()) == (model.uid, 0.4, "keep")
    assert_same_scores(as_pandas(loaded.transform(frame))[["rawPrediction", "prediction"]], expected)

    scores = mlflow.pyfunc.load_model("models:/clicks@champion").predict(given(frame))
    assert list(scores) == ["rawPrediction", "probability", "prediction"]
    assert_same_scores(scores, expected)


def test_the_code_of_an_own_module_comes_with_the_model(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A class of this name is in no process but where it was saved.
    folder = tmp_path / "nets_that_came_along"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "towers.py").write_text(
        "from torch import nn\n"
        "class Doubled(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.out = nn.Linear(3, 1)\n"
        "    def forward(self, x):\n"
        "        return 2 * self.out(x)\n"
    )
    frame = spark.createDataFrame([([float(n), 1.0, -2.0],) for n in range(5)], "x array<double>")
    with monkeypatch.context() as here:
        here.syspath_prepend(str(tmp_path))
        module = importlib.import_module("nets_that_came_along.towers").Doubled()
        store = (tmp_path / "store").as_uri()
        model = TorchModel.fromModule(module, inputCols=["x"], example=frame, storeUri=store)
        mlflow_flavor.save_model(model, str(tmp_path / "m"), code_paths=[str(folder)], signature=False)
    for name in [name for name in sys.modules if name.startswith("nets_that_came_along")]:
        monkeypatch.delitem(sys.modules, name)
    folder.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [*sys.path])

    for _ in range(2):  # what is there already is sent once
        scored = mlflow_flavor.load_model(str(tmp_path / "m")).transform(frame).collect()
    rows = torch.tensor([row["x"] for row in scored], dtype=torch.float32)
    expected = module(rows).squeeze(1).tolist()
    assert [row["prediction"] for row in scored] == pytest.approx(expected, abs=1e-6)


def test_rows_without_a_value_are_skipped_or_refused_alike(
    spark: SparkSession, model: CTRClassificationModel, tmp_path: Path
) -> None:
    frame = clicks(spark)
    skipping = model.copy({model.handleInvalid: "skip"})
    mlflow_flavor.save_model(skipping, str(tmp_path / "skip"))
    scored = as_pandas(skipping.transform(frame))
    assert 0 < len(scored) < frame.count()
    assert_same_scores(mlflow.pyfunc.load_model(str(tmp_path / "skip")).predict(given(frame)), scored)

    mlflow_flavor.save_model(model.copy({model.handleInvalid: "error"}), str(tmp_path / "error"))
    strict = mlflow.pyfunc.load_model(str(tmp_path / "error"))
    whole = given(frame).loc[scored.index].astype({"stock": int, "user": int, "member": bool})
    assert_same_scores(strict.predict(whole), scored)
    with pytest.raises(Exception, match="feature column 'page'"):
        strict.predict(whole.assign(page=None))


def test_vectors_go_in_as_lists(spark: SparkSession, fitted: TorchModel, tmp_path: Path) -> None:
    frame = separable(spark, 50)
    mlflow_flavor.save_model(fitted, str(tmp_path / "m"), input_example=frame)
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    assert len(loaded.input_example) == 5
    assert_same_scores(loaded.predict(as_pandas(frame)), as_pandas(fitted.transform(frame)))


def test_tables_that_were_left_are_read_where_they_are(
    spark: SparkSession, model: CTRClassificationModel, tmp_path: Path
) -> None:
    frame = clicks(spark)
    mlflow_flavor.save_model(model, str(tmp_path / "m"), copy_tables="reference")
    assert not list(tmp_path.rglob("buckets-*"))
    loaded = mlflow_flavor.load_model(str(tmp_path / "m"))
    expected = as_pandas(model.transform(frame))
    assert_same_scores(as_pandas(loaded.transform(frame))[["rawPrediction"]], expected)
    loaded.save(str(tmp_path / "copy"))
    assert list((tmp_path / "copy").rglob("buckets-*"))


def test_a_model_is_brought_where_executors_reach_it(
    spark: SparkSession, fitted: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = separable(spark, 50)
    mlflow_flavor.save_model(fitted, str(tmp_path / "m"))
    shared = tmp_path / "shared"
    loaded = mlflow_flavor.load_model(str(tmp_path / "m"), dfs_tmpdir=shared.as_uri())
    assert loaded.uri.startswith(shared.as_uri())
    assert_same_scores(as_pandas(loaded.transform(frame))[["prediction"]], as_pandas(fitted.transform(frame)))
    monkeypatch.setattr(type(spark.conf), "get", lambda *_: "spark://elsewhere:7077")
    with pytest.raises(ConfigurationError, match=r"executors on others cannot read it.*dfs_tmpdir=, or MLFLOW_DFS_TMP"):
        mlflow_flavor.load_model(str(tmp_path / "m"))


@pytest.mark.slow
def test_mlflows_own_flavor_takes_a_pipeline_with_our_stage(
    spark: SparkSession, server: None, store_uri: str, tmp_path: Path
) -> None:
    frame = separable(spark, 60).selectExpr("id", "x", "y", "w", "2 * w AS v")
    assembler = VectorAssembler(inputCols=["w", "v"], outputCol="f")
    torch_stage = linear(featureCols=["f"], storeUri=store_uri, epochs=1, numWorkers=1, model=two_to_one())
    fitted = Pipeline(stages=[assembler, torch_stage]).fit(frame)
    with mlflow.start_run():
        info = mlflow.spark.log_model(
            fitted, "pipeline", pip_requirements=["pyspark"], dfs_tmpdir=str(tmp_path / "dfs")
        )
    expected = as_pandas(fitted.transform(frame))["prediction"]
    loaded = mlflow.spark.load_model(info.model_uri, dfs_tmpdir=str(tmp_path / "loaded"))
    assert isinstance(loaded, PipelineModel)
    assert isinstance(loaded.stages[1], TorchModel)
    found = as_pandas(loaded.transform(frame))["prediction"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scored = mlflow.pyfunc.load_model(info.model_uri).predict(frame.select("w", "v").toPandas())
    np.testing.assert_allclose(scored, expected, rtol=0, atol=1e-6)


def two_to_one() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(2, 1))
