"""Params and everything a user can get wrong: refused early, named, and nothing left behind."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

import hvdspark
from hvdspark.errors import (
    ConfigurationError,
    DataError,
    HvdSparkError,
    NotEnoughSlotsError,
    RankFailedError,
    SchemaError,
    StoreError,
    TrainingDivergedError,
)
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchEstimator, TorchModel, TorchRegressor
from tests.spark.toys import files_in, linear, scores, separable

pytestmark = pytest.mark.spark


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


def refused(
    spark: SparkSession, tmp_path: Path, error: type[HvdSparkError], message: str, data: DataFrame, **changes: Any
) -> None:
    """`fit` raises this error and leaves nothing behind."""
    store = tmp_path / "refusing store"
    with pytest.raises(error, match=message) as caught:
        linear(**{"storeUri": store.as_uri(), **changes}).fit(data)
    assert "Hint" in str(caught.value)
    assert files_in(store) == []


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
        (ConfigurationError, "takes 1 argument.*VectorAssembler", None, {"featureCols": ["x", "w"]}),
        (
            ConfigurationError,
            r"layer '0', Linear.*float32 \[8, 3\].*gets 3",
            None,
            {"model": nn.Sequential(nn.Linear(7, 1))},
        ),
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
    model = linear(handleInvalid="skip", numWorkers=1, storeUri=store_uri).fit(data)
    assert model.summary.history[0]["rows"] == 599
    assert 5 not in scores(model.transform(data))
    with pytest.raises(Exception, match="null in feature column 'x'"):
        model.copy({model.handleInvalid: "error"}).transform(data).collect()


def test_vectors_of_different_lengths_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(1, Vectors.dense([1.0, 2.0]), 1), (2, Vectors.dense([1.0, 2.0, 3.0]), 0)]
    refused(spark, tmp_path, DataError, "x", spark.createDataFrame(rows, ["id", "x", "y"]))


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
    assert files_in(store) == []


class FailsOnRanks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hvdspark.context()
        return self.out(x[:, :2])


def test_an_error_in_the_users_module_shows_its_traceback(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match="mat1 and mat2|shapes") as caught:
        linear(model=FailsOnRanks(), storeUri=(tmp_path / "s").as_uri()).fit(separable(spark))
    assert "linear" in caught.value.traceback_text
    assert files_in(tmp_path / "s") == []


def test_an_unwritable_store_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    with pytest.raises(StoreError, match="storeUri.*Hint"):
        linear(storeUri=f"{blocker.as_uri()}/store").fit(separable(spark))
    with pytest.raises(StoreError, match="Hint"):
        linear(storeUri="s4://bucket/x").fit(separable(spark))


def test_store_directories_are_private(spark: SparkSession, tmp_path: Path) -> None:
    linear(numWorkers=1, storeUri=(tmp_path / "s").as_uri()).fit(separable(spark))
    for directory in (tmp_path / "s", *(path for path in (tmp_path / "s").rglob("*") if path.is_dir())):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory


def test_output_column_must_be_new(spark: SparkSession, fitted: TorchModel) -> None:
    with pytest.raises(SchemaError, match="exists already: 'y'"):
        fitted.copy().setPredictionCol("y").transform(separable(spark))


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (linear(predictionCol="y"), "y"),
        (linear(probabilityCol="W"), "w"),
        (linear(outputCols=["id"]), "id"),
        (TorchClassifier(model=nn.Linear(3, 1), featuresCol="x", labelCol="y", rawPredictionCol="w"), "w"),
        (TorchRegressor(model=nn.Linear(3, 1), featuresCol="x", labelCol="w", predictionCol="y"), "y"),
        (CTRClassifier(categoricalCols=["id"], labelCol="y", probabilityCol="id"), "id"),
    ],
)
def test_what_transform_would_refuse_to_add_fit_refuses(
    spark: SparkSession, tmp_path: Path, estimator: Any, name: str
) -> None:
    """As in Spark ML: a Pipeline learns it before it trains for hours."""
    with pytest.raises(SchemaError, match=f"output column exists already: '{name}'.*predictionCol.*Hint: drop it"):
        estimator.setStoreUri((tmp_path / "s").as_uri()).fit(separable(spark))
    assert files_in(tmp_path / "s") == []


def test_names_for_another_number_of_outputs(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"returns 1 output: \['a', 'b'\] \(in outputCols\)"):
        linear(outputCols=["a", "b"], storeUri=(tmp_path / "s").as_uri()).fit(separable(spark))
    assert files_in(tmp_path / "s") == []


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
