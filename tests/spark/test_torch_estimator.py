"""`TorchEstimator` and `TorchModel` on a real session: fit, score, save, load, and everything that can be wrong."""

from __future__ import annotations

import functools
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

from hvdspark.data.loader import Ragged
from hvdspark.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    HvdSparkError,
    NotEnoughSlotsError,
    PersistenceError,
    RankFailedError,
    SchemaError,
    StoreError,
    TrainingDivergedError,
)
from hvdspark.estimators import TorchEstimator, TorchModel
from hvdspark.train.callbacks import Callback, TrainState

pytestmark = pytest.mark.spark


class IdsAndNumbers(nn.Module):
    """Several feature columns: ids, a vector, a number and lists of ids."""

    def __init__(self, levels: int, width: int) -> None:
        super().__init__()
        self.levels, self.width = levels, width
        self.ids = nn.Embedding(levels, 4)
        self.bags = nn.EmbeddingBag(levels, 4, mode="sum", include_last_offset=True)
        self.out = nn.Linear(4 + 4 + width + 1, 1)

    def forward(self, ids: Tensor, vector: Tensor, number: Tensor, lists: Ragged) -> Tensor:
        assert ids.dtype == torch.int64
        assert vector.shape[1] == self.width
        bags = self.bags(lists.values, lists.offsets)  # [rows, 4]
        return self.out(torch.cat([self.ids(ids), bags, vector, number.unsqueeze(1)], dim=1))  # [rows, 1]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.click, self.classes = nn.Linear(3, 1), nn.Linear(3, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.click(features), self.classes(features)


def separable(spark: SparkSession, rows: int = 600, partitions: int = 3) -> DataFrame:
    """id, x (vector of 3), y (0 or 1 by a linear rule), w, is_validation."""
    parts = [((F.hash("id", F.lit(k)) % 1000) / 1000.0).cast("double") for k in range(3)]
    data = spark.range(0, rows, 1, partitions).select("id", F.array(*parts).alias("a"))
    return data.select(
        "id",
        array_to_vector("a").alias("x"),
        ((F.col("a")[0] - F.col("a")[1]) > 0).cast("int").alias("y"),
        (1.0 + F.col("id") % 3).alias("w"),
        (F.col("id") % 4 == 0).alias("is_validation"),
    )


def linear(**changes: Any) -> TorchEstimator:
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "model": nn.Sequential(nn.Linear(3, 1)),
        "loss": "bce_with_logits",
        "optimizer": functools.partial(torch.optim.SGD, lr=0.5),
        "featureCols": ["x"],
        "labelCol": "y",
        "batchSize": 64,
        "epochs": 2,
        "precision": "float32",
        "numWorkers": 2,
    }
    return TorchEstimator(**{**settings, **changes})


def scores(frame: DataFrame, column: str = "prediction") -> dict[int, Any]:
    return {row["id"]: row[column] for row in frame.select("id", column).collect()}


def count_jobs(spark: SparkSession, action: Callable[[], Any]) -> int:
    group = f"count-{os.urandom(4).hex()}"
    spark.sparkContext.setJobGroup(group, "")
    try:
        action()
        return len(spark.sparkContext.statusTracker().getJobIdsForGroup(group))
    finally:
        spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)


@pytest.fixture(scope="module")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    store = tmp_path_factory.mktemp("store").as_uri()
    return linear(epochs=8, storeUri=store, validationIndicatorCol="is_validation").fit(separable(spark))


def test_it_learns(spark: SparkSession, fitted: TorchModel) -> None:
    scored = fitted.transform(separable(spark))
    assert BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="prediction").evaluate(scored) > 0.97


def test_transform_is_a_plan_that_keeps_every_column(spark: SparkSession, fitted: TorchModel) -> None:
    odd = separable(spark).withColumns(
        {"a.b`c": F.lit(1), "map": F.create_map(F.lit("k"), F.lit(2)), "when": F.current_timestamp()}
    )
    holder: list[DataFrame] = []
    assert count_jobs(spark, lambda: holder.append(fitted.transform(odd))) == 0
    assert holder[0].columns == [*odd.columns, "prediction"]
    assert holder[0].schema["prediction"].dataType.simpleString() == "double"
    assert holder[0].schema == fitted.transformSchema(odd.schema)
    assert holder[0].drop("prediction", "when").collect() == odd.drop("when").collect()


def test_transform_is_the_training_forward(spark: SparkSession, fitted: TorchModel) -> None:
    rows = separable(spark).select("id", "x").collect()
    with torch.no_grad():
        expected = fitted.module()(torch.tensor(np.array([row["x"].toArray() for row in rows]), dtype=torch.float32))
    found = scores(fitted.transform(separable(spark, partitions=7)))
    assert max(abs(found[row["id"]] - value.item()) for row, value in zip(rows, expected, strict=True)) < 1e-6


def test_scoring_an_empty_dataframe(spark: SparkSession, fitted: TorchModel) -> None:
    assert fitted.transform(separable(spark).limit(0)).count() == 0


def test_summary(fitted: TorchModel) -> None:
    summary = fitted.summary
    assert fitted.hasSummary
    assert [row["epoch"] for row in summary.history] == list(range(8))
    assert {"train_loss", "val_loss", "val_auc", "val_accuracy", "val_logloss", "rows_per_s"} <= set(summary.history[0])
    assert summary.history[-1]["val_auc"] > 0.97
    assert summary.to_pandas().shape[0] == 8
    assert "val_auc" in repr(summary)
    assert "<table" in summary._repr_html_()


def test_summary_plot(fitted: TorchModel) -> None:
    import matplotlib

    matplotlib.use("Agg")
    axes = fitted.summary.plot("train_loss", "val_loss")
    assert [line.get_label() for line in axes.lines] == ["train_loss", "val_loss", "best epoch"]


def test_several_feature_columns(spark: SparkSession, store_uri: str) -> None:
    data = spark.range(0, 300, 1, 4).select(
        "id",
        F.when(F.col("id") % 3 == 0, array_to_vector(F.array(F.lit(0.0), F.col("id") / 300)))
        .otherwise(array_to_vector(F.array(F.col("id") / 300, F.lit(1.0))))
        .alias("vector"),
        (F.col("id") % 7).alias("key"),
        (F.col("id") / 300).cast("float").alias("number"),
        F.expr("CASE WHEN id % 5 = 0 THEN CAST(array() AS array<bigint>) ELSE array(id % 9, id % 4) END").alias(
            "lists"
        ),
        (F.col("id") % 2).cast("double").alias("y"),
    )
    sparse = spark.createDataFrame([(1000, Vectors.sparse(2, [1], [0.5]), 1, 0.5, [3], 1.0)], data.schema)
    data = data.union(sparse)
    model = linear(
        model=IdsAndNumbers(levels=10, width=2),
        optimizer="adam",
        featureCols=["key", "vector", "number", "lists"],
        storeUri=store_uri,
    ).fit(data)
    found = scores(model.transform(data))
    rows = data.collect()
    lengths = [len(row["lists"]) for row in rows]
    with torch.no_grad():
        expected = model.module()(
            torch.tensor([row["key"] for row in rows]),
            torch.tensor(np.array([row["vector"].toArray() for row in rows]), dtype=torch.float32),
            torch.tensor([row["number"] for row in rows]),
            Ragged(
                torch.tensor([key for row in rows for key in row["lists"]]),
                torch.tensor([0, *np.cumsum(lengths)]),
            ),
        )
    for row, value in zip(rows, expected, strict=True):
        assert found[row["id"]] == pytest.approx(value.item(), abs=1e-6)


def test_ids_beyond_float_precision_survive(spark: SparkSession, store_uri: str) -> None:
    class Parity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, ids: Tensor) -> Tensor:
            return (ids % 1000).float() + 0 * self.scale

    big = 2**62
    data = spark.range(0, 50, 1, 2).select("id", (F.col("id") + big).alias("key"), F.lit(0.0).alias("y"))
    model = linear(model=Parity(), loss="mse", featureCols=["key"], storeUri=store_uri).fit(data)
    assert scores(model.transform(data)) == {k: float((k + big) % 1000) for k in range(50)}


def test_several_outputs(spark: SparkSession, store_uri: str) -> None:
    data = separable(spark).withColumn("class", (F.col("id") % 4).cast("long"))
    estimator = linear(
        model=TwoHeads(), loss=["bce_with_logits", "cross_entropy"], labelCols=["y", "class"], storeUri=store_uri
    )
    model = estimator.fit(data)
    scored = model.transform(data)
    assert scored.columns == [*data.columns, "prediction", "prediction_1"]
    assert isinstance(scored.schema["prediction_1"].dataType, VectorUDT)
    assert {len(vector) for vector in scores(scored, "prediction_1").values()} == {4}
    named = model.copy().setOutputCols(["click", "class_scores"])
    assert named.transform(data).columns == [*data.columns, "click", "class_scores"]
    with pytest.raises(ConfigurationError, match="returns 2 outputs"):
        model.copy().setOutputCols(["click"]).transform(data)


@pytest.mark.parametrize("weight", [None, "w"])
def test_any_number_of_ranks_gives_the_same_weights(spark: SparkSession, store_uri: str, weight: str | None) -> None:
    # 600 rows in batches of 64: the last one is ragged. Without shuffling, global batches do not depend on the ranks.
    weights = []
    for size in (1, 2, 3):
        estimator = linear(numWorkers=size, shuffle=False, weightCol=weight, storeUri=store_uri, optimizer="adam")
        weights.append(estimator.fit(separable(spark, partitions=4)).module().state_dict())
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def test_the_seed_decides(spark: SparkSession, store_uri: str) -> None:
    first, again, other = (
        linear(seed=seed, storeUri=store_uri).fit(separable(spark)).module().state_dict()["0.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_fit_leaves_the_users_module_alone(spark: SparkSession, store_uri: str) -> None:
    estimator = linear(storeUri=store_uri)
    before = estimator.getModel()[0].weight.clone()
    estimator.fit(separable(spark))
    assert torch.equal(estimator.getModel()[0].weight, before)


def test_uneven_tiny_and_empty_partitions(spark: SparkSession, store_uri: str) -> None:
    data = separable(spark, rows=70, partitions=1).repartition(16, (F.col("id") < 60).cast("int"))
    sizes = [len(part) for part in data.rdd.glom().collect()]
    assert sizes.count(0) >= 10
    model = linear(batchSize=16, epochs=1, numWorkers=3, storeUri=store_uri).fit(data)
    assert model.summary.history[0]["rows"] == 70


def test_fewer_rows_than_ranks(spark: SparkSession, store_uri: str) -> None:
    model = linear(numWorkers=3, storeUri=store_uri).fit(separable(spark, rows=2))
    assert model.summary.history[0]["rows"] == 2


def test_early_stopping_restores_the_best_epoch(spark: SparkSession, store_uri: str) -> None:
    # A learning rate of 1e4 on separable data overshoots after the first steps.
    data = separable(spark)
    estimator = linear(
        epochs=12,
        earlyStoppingPatience=2,
        validationFraction=0.3,
        loss="mse",
        optimizer=functools.partial(torch.optim.SGD, lr=0.9, momentum=0.9),
        storeUri=store_uri,
    )
    model = estimator.fit(data)
    losses = [row["val_loss"] for row in model.summary.history]
    assert model.summary.bestEpoch == int(np.argmin(losses))
    if len(losses) < 12:
        assert model.summary.stopped == "patience"
        assert len(losses) == model.summary.bestEpoch + 3


class Recorder(Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_epoch_end(self, state: TrainState) -> None:
        Path(f"{self.path}/{state.rank}-{state.epoch}").write_text(json.dumps(state.metrics["train_loss"]))
        if state.epoch == 1 and state.rank == 1:
            state.stop()


def test_callbacks_run_on_every_rank_and_one_may_stop_all(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    model = linear(epochs=5, callbacks=[Recorder(str(tmp_path))], storeUri=store_uri).fit(separable(spark))
    assert sorted(os.listdir(tmp_path)) == ["0-0", "0-1", "1-0", "1-1"]
    assert (tmp_path / "0-1").read_text() == (tmp_path / "1-1").read_text()
    assert model.summary.stopped == "callback"


class DieOnce(Callback):
    """Kills rank 1 in epoch 2, the first time it gets there."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def on_epoch_begin(self, state: TrainState) -> None:
        if state.epoch == 2 and state.rank == 1 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_and_resumed_is_never_interrupted(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "optimizer": "adam", "storeUri": store_uri}
    straight = linear(**settings).fit(separable(spark))
    marker = str(tmp_path / "died")
    resumed = linear(callbacks=[DieOnce(marker)], maxRestarts=1, **settings).fit(separable(spark))
    assert os.path.exists(marker)
    assert len(resumed.summary.history) == 4
    for name, tensor in straight.module().state_dict().items():
        torch.testing.assert_close(resumed.module().state_dict()[name], tensor, rtol=0, atol=1e-6)


# --- saving and loading ---


def test_model_survives_saving_without_its_store(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    model = linear(storeUri=store_uri).fit(separable(spark))
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


def test_estimator_survives_saving(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    estimator = linear(storeUri=store_uri, epochs=1)
    estimator.write().overwrite().save(str(tmp_path / "e"))
    loaded = TorchEstimator.load(str(tmp_path / "e"))
    assert loaded.getEpochs() == 1
    assert loaded.getOptimizer().keywords == {"lr": 0.5}
    first, second = (e.fit(separable(spark)).module().state_dict()["0.weight"] for e in (estimator, loaded))
    assert torch.equal(first, second)


def test_pipeline_with_sparks_own_stages(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    data = spark.range(0, 200, 1, 2).selectExpr("id", "id / 200.0 AS a", "CAST(id % 2 AS DOUBLE) AS y")
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=["a", "y"], outputCol="x"),
            linear(model=nn.Sequential(nn.Linear(2, 1)), storeUri=store_uri),
        ]
    )
    pipeline.save(str(tmp_path / "pipeline"))
    model = Pipeline.load(str(tmp_path / "pipeline")).fit(data)
    model.write().overwrite().save(str(tmp_path / "model"))
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert scores(loaded.transform(data)) == scores(model.transform(data))


def test_cross_validator(spark: SparkSession, store_uri: str) -> None:
    estimator = linear(numWorkers=1, epochs=1, storeUri=store_uri)
    grid = ParamGridBuilder().addGrid(estimator.batchSize, [16, 600]).build()
    evaluator = BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="prediction")
    tuned = CrossValidator(
        estimator=estimator, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, parallelism=2
    ).fit(separable(spark))
    assert tuned.avgMetrics[0] > 0.9
    assert isinstance(tuned.bestModel, TorchModel)


def test_a_class_without_an_import_path_needs_an_opt_in(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = linear(model=Local(), epochs=1, storeUri=store_uri).fit(separable(spark))
    with pytest.raises(PersistenceError, match="no import path.*Hint.*allowPickle"):
        model.save(str(tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()

    allowed = linear(model=Local(), epochs=1, storeUri=store_uri, allowPickle=True).fit(separable(spark))
    allowed.save(str(tmp_path / "allowed"))
    with pytest.raises(PersistenceError, match=r"would run code.*Hint.*spark\.hvdspark\.allowPickle=true"):
        TorchModel.load(str(tmp_path / "allowed"))
    spark.conf.set("spark.hvdspark.allowPickle", "true")
    try:
        loaded = TorchModel.load(str(tmp_path / "allowed"))
    finally:
        spark.conf.unset("spark.hvdspark.allowPickle")
    assert scores(loaded.transform(separable(spark))) == scores(allowed.transform(separable(spark)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "manifest.json").unlink(), "no complete model"),
        (lambda data: (data / "weights.safetensors").unlink(), "cannot be read"),
        (lambda data: (data / "weights.safetensors").write_bytes(b"x" * 100), "damaged"),
        (
            lambda data: (data / "manifest.json").write_text(
                (data / "manifest.json").read_text().replace('"format": 1', '"format": 99')
            ),
            "newer format",
        ),
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


# --- Params ---


def test_every_param_has_a_getter_a_chaining_setter_and_a_documented_default() -> None:
    estimator = linear()
    for param in estimator.params:
        suffix = param.name[0].upper() + param.name[1:]
        assert callable(getattr(estimator, f"get{suffix}")), param.name
        if estimator.isDefined(param):
            value = estimator.getOrDefault(param)
            assert getattr(estimator, f"set{suffix}")(value) is estimator
            assert getattr(estimator, f"get{suffix}")() == value
        assert len(param.doc) > 10
    assert "numWorkers" in estimator.explainParams()


def test_a_copy_does_not_change_its_original() -> None:
    estimator = linear()
    copied = estimator.copy().setEpochs(99).setLoss("mse")
    assert (estimator.getEpochs(), estimator.getLoss()) == (2, "bce_with_logits")
    assert (copied.getEpochs(), copied.getLoss()) == (99, "mse")


@pytest.mark.parametrize(
    "settings",
    [
        {"numWorkers": 0},
        {"batchSize": 0},
        {"epochs": 0},
        {"learningRate": 0.0},
        {"validationFraction": 1.0},
        {"precision": "float8"},
        {"device": "tpu"},
        {"handleInvalid": "drop"},
        {"featureCols": []},
        {"featureCols": ["x", "x"]},
        {"gradientClipNorm": -1.0},
        {"learningRateSchedule": "zigzag"},
        {"earlyStoppingPatience": -1},
    ],
)
def test_a_value_out_of_range_is_refused_when_it_is_set(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=name):
        TorchEstimator(**settings)


def test_a_value_of_the_wrong_type_is_refused_when_it_is_set() -> None:
    with pytest.raises(TypeError, match="numWorkers"):
        TorchEstimator(numWorkers="two")
    with pytest.raises(TypeError, match="learningRates"):
        TorchEstimator(learningRates=0.1)


# --- wrong usage ---


def refused(
    spark: SparkSession, tmp_path: Path, error: type[HvdSparkError], message: str, data: DataFrame, **changes: Any
) -> None:
    """`fit` raises this error and leaves nothing behind."""
    store = tmp_path / "refusing store"
    with pytest.raises(error, match=message) as caught:
        linear(**{"storeUri": store.as_uri(), **changes}).fit(data)
    assert "Hint" in str(caught.value)
    left = [str(path) for path in store.rglob("*") if path.is_file()] if store.exists() else []
    assert not left


@pytest.mark.parametrize(
    ("error", "message", "change", "changes"),
    [
        (SchemaError, "'xx'.*Hint.*x", None, {"featureCols": ["xx"]}),
        (SchemaError, "'label'", None, {"labelCol": "label"}),
        (SchemaError, "string", "CAST(y AS STRING) AS y", {}),
        (
            SchemaError,
            "is_validation|boolean",
            "CAST(is_validation AS INT) AS is_validation",
            {"validationIndicatorCol": "is_validation"},
        ),
        (DataError, "y.*null|null.*y", "IF(id = 5, NULL, y) AS y", {}),
        (DataError, "w", "IF(id = 5, -1.0, w) AS w", {"weightCol": "w"}),
        (ConfigurationError, "two ways", None, {"validationFraction": 0.5, "validationIndicatorCol": "is_validation"}),
        (ConfigurationError, "model", None, {"model": nn.Linear}),
        (ConfigurationError, "unknown loss", None, {"loss": "bce_with_logit"}),
        (ConfigurationError, "optimizer", None, {"optimizer": "adamm"}),
        (ConfigurationError, "monitor", None, {"monitor": "val_auk"}),
        (NotEnoughSlotsError, "99 ranks", None, {"numWorkers": 99}),
    ],
)
def test_wrong_usage_is_refused_and_leaves_nothing(
    spark: SparkSession,
    tmp_path: Path,
    nothing_left_behind: None,
    error: type[HvdSparkError],
    message: str,
    change: str | None,
    changes: dict[str, Any],
) -> None:
    data = separable(spark)
    if change is not None:
        name = change.split(" AS ")[-1]
        data = data.selectExpr(*(change if column == name else column for column in data.columns))
    refused(spark, tmp_path, error, message, data, **changes)


def test_an_empty_dataframe_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    refused(spark, tmp_path, DataError, "no .*rows", separable(spark).limit(0))


def test_a_null_vector_is_refused_or_skipped(spark: SparkSession, tmp_path: Path, store_uri: str) -> None:
    data = separable(spark).withColumn("x", F.when(F.col("id") != 5, F.col("x")))
    refused(spark, tmp_path, DataError, "x", data)
    model = linear(handleInvalid="skip", storeUri=store_uri).fit(data)
    assert model.summary.history[0]["rows"] == 599
    assert 5 not in scores(model.transform(data))
    with pytest.raises(Exception, match="null in feature column 'x'"):
        model.copy({model.handleInvalid: "error"}).transform(data).collect()


def test_vectors_of_different_lengths_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(1, Vectors.dense([1.0, 2.0]), 1), (2, Vectors.dense([1.0, 2.0, 3.0]), 0)]
    refused(
        spark,
        tmp_path,
        DataError,
        "x",
        spark.createDataFrame(rows, "id int, x vector, y int")
        if False
        else spark.createDataFrame(rows, ["id", "x", "y"]),
    )


def test_a_diverging_loss_is_named(spark: SparkSession, tmp_path: Path, nothing_left_behind: None) -> None:
    nan = separable(spark).withColumn(
        "x",
        F.when(F.col("id") == 5, array_to_vector(F.array(F.lit(float("nan")), F.lit(0.0), F.lit(0.0)))).otherwise(
            F.col("x")
        ),
    )
    store = tmp_path / "s"
    with pytest.raises((TrainingDivergedError, DataError), match="(?i)nan|finite") as caught:
        linear(storeUri=store.as_uri()).fit(nan)
    assert "Hint" in str(caught.value)
    assert not [path for path in store.rglob("*") if path.is_file()]


def test_an_error_in_the_users_module_shows_its_traceback(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match="mat1 and mat2|shapes") as caught:
        linear(model=nn.Sequential(nn.Linear(7, 1)), storeUri=(tmp_path / "s").as_uri()).fit(separable(spark))
    assert "linear" in caught.value.traceback_text
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]


def test_an_unwritable_store_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    with pytest.raises(StoreError, match="storeUri.*Hint"):
        linear(storeUri=f"{blocker.as_uri()}/store").fit(separable(spark))
    with pytest.raises(StoreError, match="Hint"):
        linear(storeUri="s4://bucket/x").fit(separable(spark))


def test_store_directories_are_private(spark: SparkSession, tmp_path: Path) -> None:
    linear(storeUri=(tmp_path / "s").as_uri()).fit(separable(spark))
    for directory in (tmp_path / "s", *(path for path in (tmp_path / "s").rglob("*") if path.is_dir())):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory


def test_output_column_must_be_new(spark: SparkSession, fitted: TorchModel) -> None:
    with pytest.raises(SchemaError, match="exists already: 'y'"):
        fitted.copy().setPredictionCol("y").transform(separable(spark))


def test_scoring_other_columns_than_trained(spark: SparkSession, fitted: TorchModel) -> None:
    with pytest.raises(SchemaError, match="column not found: 'x'"):
        fitted.transform(separable(spark).drop("x"))
    with pytest.raises(SchemaError, match="array or vector"):
        fitted.transform(separable(spark).withColumn("x", F.lit(1.0)))
    wide = separable(spark).withColumn("x", array_to_vector(F.array(*[F.lit(1.0)] * 5)))
    with pytest.raises(Exception, match="trained with arrays of length 3"):
        fitted.transform(wide).collect()


def test_an_unfitted_model(spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match="not fitted.*Hint"):
        TorchModel().transform(separable(spark))


def test_twenty_fits_leak_nothing(spark: SparkSession, tmp_path: Path, nothing_left_behind: None) -> None:
    store = tmp_path / "s"
    data = separable(spark)
    models = [linear(epochs=1, storeUri=store.as_uri()).fit(data) for _ in range(20)]
    files = sorted(path.relative_to(store).parts[0] for path in store.rglob("*") if path.is_file())
    assert set(files) == {"runs"}
    assert len(files) == 2 * len(models), "weights and manifest of each model, and nothing else"
