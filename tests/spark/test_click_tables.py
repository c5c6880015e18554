"""Tables that columns share, trained embeddings as a DataFrame, and fits that begin with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark import mlflow_flavor
from hvdspark.errors import CheckpointError, ConfigurationError, SchemaError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier, TorchEstimator

pytestmark = pytest.mark.spark

CATEGORIES = ["home", "away", "user", "seen"]
NOTHING = 1e-30  # a learning rate that moves no float32


def games(spark: SparkSession, rows: int = 400) -> DataFrame:
    """id, home and away (strings of one kind), user (int), seen (arrays of home's kind), price, age and clicked."""
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) / 1000.0 for k in range(5)]
    home, away = (F.concat(F.lit("p"), (draw[k] * 12).cast("int")) for k in (0, 1))
    return spark.range(0, rows, 1, 2).select(
        "id",
        home.alias("home"),
        away.alias("away"),
        (draw[2] * 20).cast("int").alias("user"),
        F.when(F.col("id") % 3 > 0, F.array(home, F.lit("only seen")))
        .otherwise(F.array().cast("array<string>"))
        .alias("seen"),
        (draw[3] * 100).alias("price"),
        (draw[4] * 60).alias("age"),
        ((draw[0] * 12).cast("int") % 2 + draw[3] > 1.0).cast("int").alias("clicked"),
    )


def classifier(store_uri: str, **changes: Any) -> CTRClassifier:
    settings: dict[str, Any] = {
        "architecture": "wide_deep",
        "continuousCols": ["price"],
        "categoricalCols": CATEGORIES,
        "labelCol": "clicked",
        "sharedTables": {"place": ["home", "away", "seen"]},
        "embeddingDim": 4,
        "embeddingDims": {"user": 2},
        "embeddingOptimizers": {"user": "adam"},
        "hiddenUnits": [8],
        "embeddingLearningRate": 0.1,
        "batchSize": 64,
        "epochs": 1,
        "learningRateSchedule": "constant",
        "precision": "float32",
        "seed": 5,
        "storeUri": store_uri,
    }
    return CTRClassifier(**{**settings, **changes})


@pytest.fixture(scope="module")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> CTRClassificationModel:
    return classifier(tmp_path_factory.mktemp("store").as_uri(), numWorkers=2).fit(games(spark))


def scores(frame: DataFrame) -> dict[int, float]:
    return {row["id"]: row["rawPrediction"][1] for row in frame.select("id", "rawPrediction").collect()}


def by_category(frame: DataFrame) -> dict[Any, list[float]]:
    return {row["category"]: row["vector"] for row in frame.collect()}


def test_embeddings_of_a_column_and_of_categories(
    spark: SparkSession, fitted: CTRClassificationModel, tmp_path: Path
) -> None:
    tracker = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup("embeddings", "embeddings")
    every = fitted.embeddings("home")
    assert list(tracker.getJobIdsForGroup("embeddings")) == []
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", "")
    assert every.columns == ["category", "key", "vector", "weight", "count"]
    rows = every.collect()
    assert len(rows) == len({row["key"] for row in rows}) == 13  # 12 places, and what was only seen
    assert {len(row["vector"]) for row in rows} == {4}
    assert all(row["category"] is None and row["weight"] is not None and row["count"] >= 1 for row in rows)

    named = by_category(fitted.embeddings("home", games(spark).select("home")))
    assert named.keys() == {None, *(f"p{k}" for k in range(12))}  # null: nobody named "only seen"
    seen = by_category(fitted.embeddings("seen", games(spark)))  # of arrays, and of the same table
    assert seen["only seen"] == named[None]
    assert all(seen[name] == vector for name, vector in named.items() if name in seen and name is not None)
    found = fitted.vectors("away", ["p3", "p11", "never met"])
    assert found.dtype == np.float32
    assert found.tolist() == [named["p3"], named["p11"], [0.0] * 4]

    users = by_category(fitted.embeddings("user", games(spark)))
    assert users.keys() == set(range(20)), "integers, as they were"
    assert fitted.vectors("user", [7, 3]).tolist() == [users[7], users[3]]
    assert fitted.vectors("user", np.array([7.0, 3.0])).tolist() == [users[7], users[3]], "as transform takes them"

    fitted.write().save(str(tmp_path / "model"))
    loaded = CTRClassificationModel.load(str(tmp_path / "model"))
    assert loaded.getSharedTables() == {"place": ["home", "away", "seen"]}  # type: ignore[attr-defined]
    assert sorted(loaded.embeddings("home").collect()) == sorted(rows)
    assert scores(loaded.transform(games(spark, 50))) == scores(fitted.transform(games(spark, 50)))


def test_what_is_asked_for_must_be_there(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    with pytest.raises(ConfigurationError, match="'hom'.*did you mean home"):
        fitted.embeddings("hom")
    with pytest.raises(ConfigurationError, match="not a column of categories"):
        fitted.vectors("price", [1.0])
    with pytest.raises(SchemaError, match="home"):
        fitted.embeddings("home", games(spark).select("away"))
    for wrong in ("current_date()", "7", "map('a', 'b')"):  # text is hashed as it is spelled
        with pytest.raises(SchemaError, match="column 'home'"):
            fitted.embeddings("home", spark.range(1).select(F.expr(wrong).alias("home")))


def test_categories_are_named_as_they_are_given(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    given = spark.createDataFrame([("7",), (None,), ("3.0",), (" 7",), ("x",)], "user string")  # training had integers
    found = fitted.embeddings("user", given).select("category", "key", "vector").collect()
    named = {row["category"]: row["vector"] for row in found if row["category"] is not None}
    assert sorted(name.strip() for name in named) == ["3.0", "7"]
    assert len(found) == len({row["key"] for row in found}) == 20, "what nobody named has no name"
    assert fitted.vectors("user", [3, "7", None, 99]).tolist() == [
        named["3.0"],
        next(vector for name, vector in named.items() if name.strip() == "7"),
        [0.0, 0.0],
        [0.0, 0.0],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("copy_tables", [True, "reference"])
def test_embeddings_of_a_model_that_mlflow_has(
    spark: SparkSession, fitted: CTRClassificationModel, tmp_path: Path, copy_tables: Any
) -> None:
    mlflow_flavor.save_model(fitted, str(tmp_path / "logged"), copy_tables=copy_tables)
    assert bool(list((tmp_path / "logged").rglob("tables/*"))) == (copy_tables is True)
    model = mlflow_flavor.load_model(str(tmp_path / "logged"))
    assert isinstance(model, CTRClassificationModel)
    assert sorted(model.embeddings("home").collect()) == sorted(fitted.embeddings("home").collect())
    assert model.vectors("user", [7, 3]).tolist() == fitted.vectors("user", [7, 3]).tolist()


@pytest.mark.slow  # tests/unit/artifact has what is taken over
def test_a_fit_goes_on_from_a_model(spark: SparkSession, fitted: CTRClassificationModel, store_uri: str) -> None:
    data = games(spark)
    same = classifier(store_uri, warmStartFrom=fitted, learningRate=NOTHING, embeddingLearningRate=NOTHING, seed=9).fit(
        data
    )
    said = same.summary.warmStart
    assert said is not None
    assert (said["fresh"], said["dropped"], said["source"]) == ({}, [], fitted.uri)
    assert not any("warm start" in warning for warning in same.summary.warnings)
    before, after = scores(fitted.transform(data)), scores(same.transform(data))
    assert max(abs(before[key] - after[key]) for key in before) < 1e-6
    assert by_category(same.embeddings("user", data)) == by_category(fitted.embeddings("user", data))
    counts = {row["key"]: row["count"] for row in fitted.embeddings("user").collect()}
    assert all(row["count"] > counts[row["key"]] for row in same.embeddings("user").collect())


@pytest.mark.slow
def test_a_fit_goes_on_in_another_precision_from_tables_that_are_elsewhere(
    spark: SparkSession, fitted: CTRClassificationModel, store_uri: str, tmp_path: Path
) -> None:
    mlflow_flavor.save_model(fitted, str(tmp_path / "logged"), copy_tables="reference")
    data = games(spark).withColumn("user", F.when(F.col("user") > 4, F.col("user")))  # some are null
    model = classifier(
        store_uri,
        warmStartFrom=mlflow_flavor.load_model(str(tmp_path / "logged")),
        sharedTables={"place": ["home", "away"]},  # `seen` has its own now
        embeddingOptimizers={},
        embeddingDims={"user": 2, "seen": 3},
        embeddingOptimizer="ftrl",
        embeddingMinCount=1000,
        handleInvalid="keep",
        learningRate=NOTHING,
        embeddingLearningRate=NOTHING,
    ).fit(data)
    said = model.summary.warmStart
    assert said is not None
    assert {"table place", "table user"} <= set(said["kept"])
    before, after = (by_category(found.embeddings("home", data)) for found in (fitted, model))
    assert before.keys() == after.keys()
    for name, vector in before.items():  # FTRL makes rows of its state, up to rounding
        np.testing.assert_allclose(after[name], vector, rtol=1e-4, atol=1e-7)
    assert {"table seen", "network.deep.0.weight"} == said["fresh"].keys()
    assert model.embeddings("seen").count() == 0, "no category was met so often"
    halves = classifier(store_uri, warmStartFrom=model, embeddingDtype="bfloat16", handleInvalid="keep").fit(data)
    assert halves.summary.warmStart is not None
    words = "dtype was 'float32' when saved, and is 'bfloat16' now"
    assert {halves.summary.warmStart["fresh"][f"table {name}"] for name in ("place", "user")} == {words}
    rows = halves.embeddings("user", data).collect()
    (null,) = [row for row in rows if row["category"] is None]
    assert (null["key"], len(rows)) == (0, 16)
    for row in rows:
        given = torch.tensor(row["vector"])
        assert torch.equal(given, given.bfloat16().float())
        assert halves.vectors("user", [row["category"]]).tolist() == [row["vector"]]


@pytest.mark.slow
def test_candidates_of_a_search_begin_with_a_model(
    spark: SparkSession, fitted: CTRClassificationModel, store_uri: str, tmp_path: Path
) -> None:
    estimator = classifier(store_uri, warmStartFrom=fitted, learningRate=NOTHING)
    grid = ParamGridBuilder().addGrid(estimator.embeddingLearningRate, [NOTHING, 0.1])  # type: ignore[attr-defined]
    search = CrossValidator(
        estimator=estimator,
        estimatorParamMaps=grid.build(),
        evaluator=BinaryClassificationEvaluator(labelCol="clicked"),
        numFolds=2,
        collectSubModels=True,
    )
    search.save(str(tmp_path / "search"))
    found = CrossValidator.load(str(tmp_path / "search")).fit(games(spark))
    assert found.subModels is not None
    places = by_category(fitted.embeddings("home", games(spark)))
    for fold in found.subModels:
        for number, model in enumerate(fold):
            assert model.summary.warmStart["source"] == fitted.uri
            assert (by_category(model.embeddings("home", games(spark))) == places) == (number == 0)
    assert found.bestModel.summary.warmStart["fresh"] == {}


@pytest.mark.slow
def test_a_fit_goes_on_with_other_columns(
    spark: SparkSession, fitted: CTRClassificationModel, store_uri: str, tmp_path: Path
) -> None:
    fitted.write().save(str(tmp_path / "model"))
    data = games(spark).withColumn("day", F.col("id") % 7)
    changed = classifier(
        store_uri,
        warmStartFrom=str(tmp_path / "model"),
        continuousCols=["age"],  # as many numbers as before, but another one
        categoricalCols=["home", "away", "seen", "day"],
        embeddingDims={},
        embeddingOptimizers={},
        learningRate=NOTHING,
        embeddingLearningRate=NOTHING,
        numWorkers=2,
    ).fit(data)
    said = changed.summary.warmStart
    assert said is not None
    assert {"table day", "mean", "deviation", "network.wide.weight", "network.deep.0.weight"} == said["fresh"].keys()
    assert said["fresh"]["table day"] == "it is new"
    assert said["fresh"]["network.wide.weight"] == "its inputs are others than they were"
    assert said["dropped"] == ["table user"]
    assert {"table place", "network.deep.2.weight", "network.wide.bias"} <= set(said["kept"])
    (warning,) = [text for text in changed.summary.warnings if "warm start" in text]
    assert "table day (it is new)" in warning
    assert "table user" in warning
    places = by_category(fitted.embeddings("home", data))
    assert by_category(changed.embeddings("home", data)) == places
    old, new = fitted.module().state_dict(), changed.module().state_dict()
    for name in set(said["kept"]) & new.keys():
        assert torch.equal(old[name], new[name]), name
    assert not torch.equal(old["network.deep.0.weight"][:, :1], new["network.deep.0.weight"][:, :1])
    again = CTRClassificationModel.load(saved(changed, tmp_path / "again"))
    assert again.summary.warmStart == said


def saved(model: Any, path: Path) -> str:
    model.write().save(str(path))
    return str(path)


@pytest.mark.slow
def test_a_module_goes_on_from_a_model(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    data = games(spark).select(F.array("price", "age").alias("features"), F.col("clicked").cast("float").alias("label"))

    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))

    def estimator(width: int, **changes: Any) -> TorchEstimator:
        settings = {"loss": "bce_with_logits", "featureCols": ["features"], "batchSize": 100, "storeUri": store_uri}
        return TorchEstimator(**{"model": net(width), **settings, **changes})

    first = estimator(3).fit(data)
    module = net(5)
    untouched = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    second = estimator(5, model=module, warmStartFrom=first, learningRate=NOTHING).fit(data)
    old, new = first.module().state_dict(), second.module().state_dict()
    said = second.summary.warmStart
    assert said is not None
    assert said["kept"] == ["0.weight", "0.bias", "4.bias"]
    assert said["fresh"]["2.weight"] == "its shape was (3, 4), and is (5, 4)"
    assert all(torch.equal(old[name], new[name]) for name in said["kept"])
    assert all(torch.equal(untouched[name], new[name]) for name in said["fresh"])
    assert all(torch.equal(untouched[name], tensor) for name, tensor in module.state_dict().items()), "the user's own"
    path = saved(estimator(3, warmStartFrom=first), tmp_path / "estimator")
    assert TorchEstimator.load(path).getWarmStartFrom() == first.uri
    for wrong, words in ((tmp_path / "nowhere", "no trained model"), (store_uri, "no complete model|no trained model")):
        with pytest.raises(CheckpointError, match=words):
            estimator(3, warmStartFrom=str(wrong)).fit(data)
    with pytest.raises(ConfigurationError, match="nothing in common"):
        estimator(3, model=nn.Linear(2, 1), warmStartFrom=first).fit(data)
    with pytest.raises(ConfigurationError, match="nothing in common"):
        classifier(store_uri, warmStartFrom=first).fit(games(spark))
