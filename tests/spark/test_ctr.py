"""CTRClassifier and CTRClassificationModel on real sessions with real Horovod ranks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from hvdspark.artifact import TrainedModel
from hvdspark.data.readers import moments
from hvdspark.errors import CheckpointError, ConfigurationError, DataError, SchemaError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier
from hvdspark.estimators.columns import scoring_input
from hvdspark.estimators.continuous import check_numbers, number
from hvdspark.estimators.ctr import _columns as columns_of
from hvdspark.specs import ColumnSpec
from tests.manifests import rewritten
from tests.spark.toys import files_in

pytestmark = pytest.mark.spark

NUMBERS, CATEGORIES = ["price", "age"], ["user", "page", "tags"]


def clicks(spark: SparkSession, rows: int = 3000) -> DataFrame:
    """id, price (double), age (int), user (bigint, some negative), page (string), tags (array of strings), clicked."""
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) / 1000.0 for k in range(6)]
    user = (draw[0] * 40).cast("bigint") - 20
    page = F.concat(F.lit("page "), (draw[1] * 30).cast("int"))
    score = (user % 2) * 2 + (draw[1] * 30).cast("int") % 3 - 1 + draw[2] * 2 - 1
    return spark.range(0, rows, 1, 3).select(
        "id",
        (draw[2] * 500).alias("price"),
        (draw[3] * 60).cast("int").alias("age"),
        user.alias("user"),
        page.alias("page"),
        F.slice(
            F.array(F.lit("a"), F.lit("b"), F.concat(F.lit("t"), (draw[4] * 9).cast("int"))),
            1,
            F.pmod("id", F.lit(4)).cast("int"),
        ).alias("tags"),
        (score + draw[5] > 0.5).cast("int").alias("clicked"),
    )


def classifier(**changes: Any) -> CTRClassifier:
    settings: dict[str, Any] = {
        "architecture": "deepfm",
        "continuousCols": NUMBERS,
        "categoricalCols": CATEGORIES,
        "labelCol": "clicked",
        "embeddingDim": 4,
        "hiddenUnits": [16],
        "embeddingLearningRate": 0.1,
        "learningRate": 0.01,
        "batchSize": 256,
        "epochs": 3,
        "precision": "float32",
        "seed": 5,
    }
    return CTRClassifier(**{**settings, **changes})


@pytest.fixture(scope="module")
def fitted(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> CTRClassificationModel:
    return classifier(storeUri=tmp_path_factory.mktemp("store").as_uri()).fit(clicks(spark))


def probabilities(frame: DataFrame) -> dict[int, float]:
    return {row["id"]: row["probability"][1] for row in frame.select("id", "probability").collect()}


def test_raw_columns_to_predictions(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    data = clicks(spark)
    scored = fitted.transform(data)
    assert scored.columns == [*data.columns, "rawPrediction", "probability", "prediction"]
    assert scored.schema == fitted.transformSchema(data.schema)
    with pytest.raises(SchemaError, match="column not found: 'page'"):
        fitted.transformSchema(data.drop("page").schema)
    assert BinaryClassificationEvaluator(labelCol="clicked").evaluate(scored) > 0.9
    row = scored.select("rawPrediction", "probability", "prediction").first()
    assert row is not None
    raw, probability, prediction = row
    assert raw[0] == -raw[1]
    assert probability.sum() == pytest.approx(1.0)
    assert probability[1] == pytest.approx(1 / (1 + np.exp(-raw[1])))
    assert prediction == float(probability[1] > 0.5)
    low = fitted.copy({fitted.threshold: 0.0}).transform(data)
    assert low.filter("prediction = 1.0").count() == data.count()
    assert fitted.summary.history[-1]["train_loss"] < fitted.summary.history[0]["train_loss"]


def test_transform_starts_no_job_and_inserts_nothing(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    tracker = spark.sparkContext.statusTracker()
    spark.sparkContext.setJobGroup("transform", "transform")
    data = clicks(spark)
    scored = fitted.transform(data)
    assert list(tracker.getJobIdsForGroup("transform")) == []
    spark.sparkContext.setLocalProperty("spark.jobGroup.id", "")
    store = Path(fitted.uri.removeprefix("file://"))
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    unseen = data.limit(5).withColumn("user", F.lit(10**15)).withColumn("page", F.lit("never"))
    assert len(probabilities(fitted.transform(unseen))) == 5
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    assert scored.count() == 3000


def test_scores_are_those_of_the_module_whatever_the_partitions(
    spark: SparkSession, fitted: CTRClassificationModel
) -> None:
    data = clicks(spark).limit(400)
    one, many = (probabilities(fitted.transform(data.repartition(n))) for n in (1, 7))
    assert one.keys() == many.keys()
    assert max(abs(one[key] - many[key]) for key in one) < 1e-6


def test_the_type_of_a_category_does_not_matter_to_its_key(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    data = clicks(spark).limit(200)
    as_text = data.withColumn("user", F.col("user").cast("string"))
    assert probabilities(fitted.transform(as_text)) == probabilities(fitted.transform(data))


def test_a_saved_model_knows_the_types_of_training(
    spark: SparkSession, fitted: CTRClassificationModel, tmp_path: Path
) -> None:
    data = clicks(spark, 200)
    expected = probabilities(fitted.transform(data))
    others = {"price": "float", "age": "decimal(20,0)", "user": "double", "tags": "array<varchar(9)>"}
    fitted.write().save(str(tmp_path / "model"))
    model = CTRClassificationModel.load(str(tmp_path / "model"))
    found = probabilities(model.transform(data.withColumns({c: F.col(c).cast(kind) for c, kind in others.items()})))
    assert {key: pytest.approx(value, abs=1e-6) for key, value in found.items()} == expected
    as_numbers = data.withColumn("page", F.lit(7))
    with pytest.raises(SchemaError, match="trained on string here: 'int'.*'page'.*Hint: cast it to string"):
        model.transform(as_numbers)
    scored = model.transform(data.coalesce(1)).collect()
    columns = {name: [row[name] for row in scored] for name in [*NUMBERS, *CATEGORIES]}
    (logits,) = TrainedModel.read(str(tmp_path / "model")).predict(columns)  # without Spark
    assert logits.tolist() == [row["rawPrediction"][1] for row in scored]
    manifest = tmp_path / "model" / "data" / "manifest.json"
    rewritten(manifest, lambda said: said["state"].pop("types"))  # as it was before types were saved
    old = CTRClassificationModel.load(str(tmp_path / "model"))
    assert len(probabilities(old.transform(as_numbers))) == 200


def test_one_worker_or_two_give_the_same_model(spark: SparkSession, store_uri: str) -> None:
    data = clicks(spark, 600)
    scores = []
    for workers in (1, 2):
        model = classifier(storeUri=store_uri, numWorkers=workers, shuffle=False).fit(data)
        scores.append(probabilities(model.transform(data)))
    assert max(abs(scores[0][key] - scores[1][key]) for key in scores[0]) < 1e-4


@pytest.mark.slow  # in a session of Spark Connect it is in test_any_session.py
def test_in_a_pipeline_saved_and_loaded(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    data = clicks(spark, 600)
    pipeline = Pipeline(stages=[classifier(storeUri=store_uri, architecture="dlrm", epochs=1)])
    pipeline.write().save(str(tmp_path / "pipeline"))
    model = Pipeline.load(str(tmp_path / "pipeline")).fit(data)
    expected = probabilities(model.transform(data))
    model.write().save(str(tmp_path / "fitted"))
    stage = model.stages[0]
    for name in files_in(Path(store_uri.removeprefix("file://"))):
        (Path(store_uri.removeprefix("file://")) / name).unlink()
    loaded = PipelineModel.load(str(tmp_path / "fitted"))
    assert probabilities(loaded.transform(data)) == expected
    loaded.stages[0].write().save(str(tmp_path / "again"))
    again = CTRClassificationModel.load(str(tmp_path / "again"))
    assert probabilities(again.transform(data)) == expected
    assert again.summary.history == stage.summary.history
    again.write().overwrite().save(str(tmp_path / "again"))
    assert probabilities(again.transform(data)) == expected
    assert probabilities(CTRClassificationModel.load(str(tmp_path / "again")).transform(data)) == expected
    loaded.write().overwrite().save(str(tmp_path / "fitted"))
    assert probabilities(loaded.transform(data)) == expected
    assert probabilities(PipelineModel.load(str(tmp_path / "fitted")).transform(data)) == expected
    assert sorted(os.listdir(tmp_path)) == ["again", "fitted", "pipeline", "store"], "nothing is left beside them"
    pickles = [path for path in tmp_path.rglob("*") if "pickle" in path.name or path.suffix in (".pt", ".pkl")]
    assert pickles == []


@pytest.fixture(scope="module")
def saved(fitted: CTRClassificationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    fitted.write().save(str(path))
    return path


@pytest.mark.parametrize("damage", ["missing", "flipped", "newer"])
def test_a_damaged_or_newer_save_is_refused_on_the_driver(saved: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(saved, tmp_path / "model")
    tables = sorted((tmp_path / "model" / "data" / "tables").rglob("*.safetensors"))
    if damage == "missing":
        tables[0].unlink()
    elif damage == "flipped":
        content = bytearray(tables[0].read_bytes())
        content[-1] ^= 1
        tables[0].write_bytes(content)
    else:
        manifest = tmp_path / "model" / "data" / "manifest.json"
        rewritten(manifest, lambda said: said.update(format=99))
    with pytest.raises(CheckpointError, match="upgrade" if damage == "newer" else "damaged|cannot be read"):
        CTRClassificationModel.load(str(tmp_path / "model"))


def test_no_input_column_is_replaced(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    data = clicks(spark, 10)
    with pytest.raises(SchemaError, match="exists already: 'Prediction'"):  # one name, to Spark
        fitted.transform(data.withColumn("Prediction", F.lit(1)))
    with pytest.raises(SchemaError, match="two output columns have the same name"):
        fitted.copy({fitted.probabilityCol: "prediction"}).transform(data)
    few = fitted.copy({fitted.probabilityCol: "", fitted.rawPredictionCol: ""})
    assert few.transform(data).columns == [*data.columns, "prediction"], "as in Spark ML, no name is no column"
    assert few.setPredictionCol("").transform(data).columns == data.columns


@pytest.mark.slow
def test_infinity_is_a_gap(spark: SparkSession, store_uri: str) -> None:
    data = clicks(spark, 300)
    beyond = F.when(F.col("id") % 7 == 0, 1e300).when(F.col("id") % 7 == 1, float("-inf")).otherwise(F.col("price"))
    gaps, infinite = (
        data.withColumn("price", F.when(F.col("id") % 7 > 1, F.col("price"))),
        data.withColumn("price", beyond),
    )
    with pytest.raises(DataError, match="price"):
        classifier(storeUri=store_uri).fit(infinite)
    keeping = classifier(storeUri=store_uri, handleInvalid="keep", epochs=1).fit(infinite)
    assert probabilities(keeping.transform(infinite)) == probabilities(keeping.transform(gaps))
    skipping = keeping.copy({keeping.handleInvalid: "skip"})
    assert skipping.transform(infinite).count() == data.filter("id % 7 > 1").count()
    with pytest.raises(Exception, match="null or NaN in feature column 'price'"):
        keeping.copy({keeping.handleInvalid: "error"}).transform(infinite).agg(F.sum("prediction")).collect()


def with_gaps(spark: SparkSession) -> DataFrame:
    data = clicks(spark, 600)
    return data.withColumn("user", F.when(F.col("id") % 10 != 0, F.col("user"))).withColumn(
        "price", F.when(F.col("id") % 7 == 0, float("nan")).otherwise(F.col("price"))
    )


@pytest.mark.slow
def test_gaps_are_an_error_unless_they_are_skipped_or_kept(spark: SparkSession, store_uri: str) -> None:
    data = with_gaps(spark)
    with pytest.raises(DataError, match="price|user"):
        classifier(storeUri=store_uri).fit(data)
    skipping = classifier(storeUri=store_uri, handleInvalid="skip", epochs=1).fit(data)
    invalid = data.filter("isnan(price) or user is null").count()
    assert skipping.summary.history[0]["rows"] == 600 - invalid
    assert skipping.transform(data).count() == 600 - invalid
    keeping = classifier(storeUri=store_uri, handleInvalid="keep", epochs=1).fit(data)
    assert keeping.summary.history[0]["rows"] == 600
    scored = probabilities(keeping.transform(data))
    assert len(scored) == 600
    assert all(0 < value < 1 for value in scored.values())


def test_gaps_at_scoring(spark: SparkSession, fitted: CTRClassificationModel) -> None:
    with pytest.raises(Exception, match="null"):
        fitted.transform(with_gaps(spark)).agg(F.sum("prediction")).collect()


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"continuousCols": ["age"], "categoricalCols": ["price"]}, SchemaError, "continuousCols"),
        ({"continuousCols": ["page"], "categoricalCols": ["user"]}, SchemaError, "categoricalCols"),
        ({"continuousCols": ["tags"], "categoricalCols": ["user"]}, SchemaError, "tags"),
        ({"continuousCols": ["Price"], "categoricalCols": ["user"]}, SchemaError, "did you mean 'price'"),
        ({"categoricalCols": ["usr"]}, SchemaError, "user"),
        ({"categoricalCols": ["user", "age"]}, ConfigurationError, "both continuous and categorical.*age"),
        ({"labelCol": "click"}, SchemaError, "clicked"),
    ],
)
def test_columns_that_cannot_be(
    spark: SparkSession, store_uri: str, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        classifier(storeUri=store_uri, **changes).fit(clicks(spark, 10))
    assert not Path(store_uri.removeprefix("file://")).exists() or not files_in(Path(store_uri.removeprefix("file://")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "dlmr"}, "unknown choice.*dlrm"),
        ({"embeddingDim": 0}, "embeddingDim"),
        ({"hiddenUnits": [16, 0]}, "hiddenUnits"),
        ({"embeddingOptimizer": "adamw"}, "rowwise_adagrad"),
        ({"dropout": 1.0}, "dropout"),
        ({"embeddingLearningRate": 0.0}, "embeddingLearningRate"),
    ],
)
def test_params_that_cannot_be(changes: dict[str, Any], words: str, spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match=words):
        classifier(**changes)


def test_no_columns_at_all(spark: SparkSession, store_uri: str) -> None:
    with pytest.raises(ConfigurationError, match="continuousCols and categoricalCols"):
        CTRClassifier(labelCol="clicked", storeUri=store_uri).fit(clicks(spark, 10))


def test_labels_that_are_no_probabilities(spark: SparkSession, store_uri: str) -> None:
    data = clicks(spark, 50).withColumn("clicked", F.lit(2))
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        classifier(storeUri=store_uri).fit(data)
    with pytest.raises(SchemaError, match="a label must be one number: 'array<int>'.*'clicked'"):
        classifier(storeUri=store_uri).fit(data.withColumn("clicked", F.array("clicked")))


@pytest.mark.slow
@pytest.mark.parametrize(("left_out", "value"), [("continuousCols", []), ("categoricalCols", None)])
def test_numbers_alone_or_categories_alone(
    spark: SparkSession, store_uri: str, left_out: str, value: Any, nothing_left_behind: Callable[[], None]
) -> None:
    data = clicks(spark, 300)
    estimator = classifier(storeUri=store_uri, architecture="dcn_v2", epochs=1, **{left_out: value})
    assert columns_of(estimator) == columns_of(classifier(**{left_out: [] if value is None else None}))
    assert len(probabilities(estimator.fit(data).transform(data))) == 300


def test_no_columns_at_all_are_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigurationError, match="continuousCols and categoricalCols"):
        classifier(continuousCols=[], categoricalCols=[]).fit(clicks(spark, 10))


@pytest.mark.slow
def test_numbers_of_any_offset_and_scale(spark: SparkSession, store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_FEW_ROWS", 0)  # a job reads them, as where there are many
    draw = [F.rand(seed) - 0.5 for seed in range(5)]
    hour = 1_760_000_000
    data = spark.range(0, 6000, 1, 3).select(
        "id",
        ((draw[0] * 3.6e12).cast("bigint") + F.lit(hour * 10**9)).alias("nanoseconds"),
        (draw[1] * 3600 + hour).cast("bigint").alias("seconds"),
        (draw[2] * 200 + 5e8).alias("large"),
        (draw[3] * 1e-9).alias("tiny"),
        (draw[4] * 200 + 2**60).cast("bigint").alias("beyond double"),
        F.lit(7).alias("one.number"),
    )
    numbers = data.columns[1:]
    parts = [(F.col("nanoseconds") - hour * 10**9) / 3.6e12, (F.col("seconds") - hour) / 3600]
    parts += [(F.col("large") - 5e8) / 200, F.col("tiny") * 1e9]
    data = data.withColumn("clicked", (sum(parts[1:], parts[0]) > 0).cast("int"))
    model = CTRClassifier(architecture="lr", continuousCols=numbers, labelCol="clicked", storeUri=store_uri).fit(data)
    # Each of the four is a quarter of it: without one of them 0.94 is the most.
    assert BinaryClassificationEvaluator(labelCol="clicked").evaluate(model.transform(data)) > 0.99
    assert any(text.startswith("column 'beyond double'") for text in model.summary.warnings)
    # What was one number in training says nothing later.
    other = data.limit(50).withColumn("one.number", F.lit(10**6))
    assert probabilities(model.transform(other)) == probabilities(model.transform(data.limit(50)))


@pytest.mark.parametrize("handle_invalid", [pytest.param("skip", marks=pytest.mark.slow), "keep"])
def test_a_plan_of_many_columns_grows_no_faster_than_they_do(spark: SparkSession, handle_invalid: str) -> None:
    def shape(count: int) -> tuple[int, int]:
        """Operators of the plan, and how deep its expressions are nested: what analysis repeats for every column."""
        data = spark.range(9).select(*(F.lit(float(k)).alias(f"x.{k}") for k in range(count)))
        features = [ColumnSpec(f"x.{k}", "float64", "scalar") for k in range(count)]
        check_numbers(data.schema, data.columns)
        derived = {name: number(name) for name in data.columns}
        rows, inputs = scoring_input(data, features, handle_invalid, derived)
        plan = rows.select(*inputs)._jdf.queryExecution().analyzed().toString()
        depth = deepest = 0
        for letter in plan:
            depth += (letter == "(") - (letter == ")")
            deepest = max(deepest, depth)
        return plan.count("\n"), deepest

    few, many = shape(100), shape(800)
    assert many[0] == few[0]
    assert many[1] <= few[1] + 3  # a tree of 8 times as many conditions


@pytest.mark.slow
def test_names_that_differ_in_case_alone(spark: SparkSession, store_uri: str) -> None:
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        draw = [F.rand(seed) - 0.5 for seed in range(2)]
        data = spark.range(0, 400).select("id", draw[0].alias("x"), draw[1].alias("X"), F.lit(1).alias("Prediction"))
        data = data.withColumn("clicked", (F.col("x") - F.col("X") > 0).cast("int"))
        model = CTRClassifier(architecture="lr", continuousCols=["x", "X"], labelCol="clicked", storeUri=store_uri)
        scored = model.setHandleInvalid("skip").fit(data).transform(data)
        assert scored.columns[-3:] == ["rawPrediction", "probability", "prediction"]
        assert BinaryClassificationEvaluator(labelCol="clicked").evaluate(scored) > 0.99
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
