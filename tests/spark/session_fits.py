"""What fits and models do in a session of any kind. `test_any_session.py` runs each of these where there is one."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from torch import nn

from hvdspark.errors import RankFailedError, StoreError
from hvdspark.estimators import (
    CTRClassificationModel,
    CTRClassifier,
    TorchClassifier,
    TorchEstimator,
    TorchModel,
    TorchRegressionModel,
    TorchRegressor,
)
from hvdspark.events import CheckpointCommitted, DatasetReady, EpochEnded, FitEnded, FitFailed, SlotsAwaited
from hvdspark.session import session_of
from tests.spark.listeners import Seen
from tests.spark.test_newcomers import CASES, check_in_time
from tests.spark.toys import files_in, linear, scores, separable


def a_pipeline_is_fitted_scored_saved_and_loaded(spark: SparkSession, folder: str) -> None:
    data = separable(spark).select("id", *(vector_to_array("x")[k].alias(f"x{k}") for k in range(3)), "y")
    seen, inputs = Seen(), VectorAssembler(inputCols=["x0", "x1", "x2"], outputCol="x")
    estimator = linear(epochs=3, storeUri=f"file://{folder}/store", listeners=[seen])
    Pipeline(stages=[inputs, estimator]).write().overwrite().save(f"{folder}/unfitted")
    loaded = Pipeline.load(f"{folder}/unfitted").getStages()[1]
    assert isinstance(loaded, TorchEstimator)
    assert loaded.setListeners([seen]).uid == estimator.uid

    model = Pipeline(stages=[inputs, loaded]).fit(data)
    assert [event.epoch for event in seen.of(EpochEnded)] == [0, 1, 2], "ranks report their progress"
    assert len(seen.of(CheckpointCommitted)) == 3
    assert [len(event.history) for event in seen.of(FitEnded)] == [3]
    predictions = scores(model.transform(data))
    right = scores(model.transform(data).withColumn("prediction", ((F.col("prediction") > 0) == (F.col("y") == 1))))
    assert sum(right.values()) > 0.9 * len(right)

    (Path(folder) / "model").mkdir()
    (Path(folder) / "model" / "written before").write_text("x")
    for path, saved in ((f"file://{folder}/model", model.stages[1]), (f"{folder}/pipeline", model)):
        saved.write().overwrite().save(path)
        with pytest.raises(Exception, match=r"(?i)exists"):
            saved.write().save(path)
        saved.write().overwrite().save(path)
    assert not (Path(folder) / "model" / "written before").exists()
    assert scores(PipelineModel.load(f"{folder}/pipeline").transform(data)) == predictions
    again = TorchModel.load(f"{folder}/model")
    assert scores(again.transform(inputs.transform(data))) == predictions
    assert again.summary.history == model.stages[1].summary.history
    assert not list((Path(folder) / "store" / "leases").glob("*")), "no run is left unfinished"


def classes_are_found_and_searched(spark: SparkSession, folder: str) -> None:
    data = separable(spark).withColumn("y", F.col("y").cast("double"))
    logistic = LogisticRegression(featuresCol="x", labelCol="y", maxIter=5).fit(data)
    classifier = TorchClassifier(
        model=nn.Linear(3, 2),
        optimizer=functools.partial(torch.optim.SGD, lr=0.5),
        featuresCol="scaled",
        labelCol="y",
        epochs=3,
        batchSize=32,
        storeUri=f"file://{folder}/store",
    )
    evaluate = MulticlassClassificationEvaluator(labelCol="y", metricName="accuracy")
    search = TrainValidationSplit(
        estimator=Pipeline(stages=[StandardScaler(inputCol="x", outputCol="scaled"), classifier]),
        estimatorParamMaps=ParamGridBuilder().addGrid(classifier.epochs, [1, 4]).build(),
        evaluator=evaluate,
        parallelism=2,
        seed=1,
    )
    found = search.fit(data)
    assert max(found.validationMetrics) > 0.9
    found.write().overwrite().save(f"{folder}/search")
    found = TrainValidationSplitModel.load(f"{folder}/search")
    assert found.bestModel.stages[1].numClasses == 2
    scored = found.transform(data)
    assert evaluate.evaluate(scored) > 0.9
    assert BinaryClassificationEvaluator(labelCol="y").evaluate(scored) > 0.95
    # Its closures hold its summary, and so the session, which must stay serializable whatever a fit asks of it.
    assert logistic.hasSummary
    assert evaluate.evaluate(logistic.transform(data)) > 0.9


def folds_share_a_search(spark: SparkSession, folder: str) -> None:
    data = separable(spark).withColumn("w", F.col("w") + vector_to_array("x")[0])
    regressor = TorchRegressor(featuresCol="x", labelCol="w", numWorkers=2, storeUri=f"file://{folder}/store")
    regressor.setModel(nn.Linear(3, 1)).setOptimizer(functools.partial(torch.optim.SGD, lr=0.1))
    search = CrossValidator(
        estimator=regressor,
        estimatorParamMaps=ParamGridBuilder().addGrid(regressor.epochs, [1, 8]).build(),
        evaluator=RegressionEvaluator(labelCol="w", metricName="rmse"),
        numFolds=2,
        parallelism=2,
        collectSubModels=True,
    )
    found = search.fit(data)
    few, many = found.avgMetrics
    assert many < few
    found.write().overwrite().save(f"{folder}/search")
    loaded = CrossValidatorModel.load(f"{folder}/search")
    assert [[type(model) for model in fold] for fold in loaded.subModels] == 2 * [2 * [TorchRegressionModel]]
    assert scores(loaded.transform(data)) == scores(found.transform(data))


def candidates_take_turns(spark: SparkSession, folder: str) -> None:
    """Two of two ranks each, side by side on fewer than four slots."""
    seen = Seen()
    estimator = linear(epochs=2, storeUri=f"file://{folder}/store", rawPredictionCol="raw", listeners=[seen])
    search = TrainValidationSplit(
        estimator=estimator,
        estimatorParamMaps=ParamGridBuilder().addGrid(estimator.batchSize, [16, 32]).build(),
        evaluator=BinaryClassificationEvaluator(labelCol="y", rawPredictionCol="raw"),
        parallelism=2,
        seed=1,
    )
    model = search.fit(separable(spark, 200))
    assert min(model.validationMetrics) > 0.8
    assert len({event.dataset.path for event in seen.of(DatasetReady)}) == 2, "one for both, one for the best"
    waited = seen.of(SlotsAwaited)
    assert waited
    assert {(event.slots, event.total) for event in waited} == {(2, session_of(spark).slots())}


def streams_are_scored(spark: SparkSession, folder: str) -> None:
    data, module = separable(spark, 40), nn.Linear(3, 1)
    data.write.parquet(f"{folder}/rows")
    model = TorchModel.fromModule(module, inputCols=["x"], example=data, storeUri=f"file://{folder}/store")
    stream = spark.readStream.schema(data.schema).parquet(f"{folder}/rows")
    writer = model.transform(stream).writeStream.trigger(availableNow=True).format("parquet")
    query = writer.option("checkpointLocation", f"{folder}/checkpoint").start(f"{folder}/scored")
    try:
        assert query.awaitTermination(60)
    finally:
        query.stop()
    found, wanted = scores(spark.read.parquet(f"{folder}/scored")), scores(model.transform(data))
    assert found.keys() == wanted.keys() == set(range(40))
    assert list(found.values()) == pytest.approx([wanted[key] for key in found], abs=1e-6)


def runs_are_tracked_and_models_logged(spark: SparkSession, folder: str) -> None:
    import mlflow

    from hvdspark import mlflow_flavor
    from tests.spark.mlflow_runs import written

    tracking, data = f"sqlite:///{folder}/mlflow.db", separable(spark)
    model = linear(storeUri=f"file://{folder}/store", trackingUri=tracking).fit(data)
    written()
    client = mlflow.MlflowClient(tracking)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 2
    assert (run.data.params["batchSize"], run.data.tags["hvdspark.model_uri"]) == ("64", model.uri)
    mlflow_flavor.save_model(model, f"{folder}/flavor")
    loaded = mlflow_flavor.load_model(f"{folder}/flavor")
    assert scores(loaded.transform(data)) == scores(model.transform(data))


def clicks(spark: SparkSession) -> DataFrame:
    """id, price (double), item (string), user (bigint), clicked (by item and price)."""
    draw = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(1000)) / 1000.0 for k in range(3)]
    item = (draw[0] * 30).cast("int")
    return spark.range(0, 1500, 1, 2).select(
        "id",
        (draw[1] * 500).alias("price"),
        F.concat(F.lit("item "), item).alias("item"),
        (draw[2] * 5000).cast("bigint").alias("user"),
        ((item % 3 == 0) | (draw[1] > 0.8)).cast("int").alias("clicked"),
    )


def clicks_are_learned_saved_and_loaded(spark: SparkSession, folder: str) -> None:
    data, seen = clicks(spark), Seen()
    classifier = CTRClassifier(
        architecture="fm",
        continuousCols=["price"],
        categoricalCols=["item", "user"],
        labelCol="clicked",
        embeddingDim=4,
        embeddingLearningRate=0.3,
        batchSize=64,
        epochs=3,
        numWorkers=2,
        storeUri=f"file://{folder}/store",
        listeners=[seen],
    )
    model = classifier.fit(data)
    assert [event.epoch for event in seen.of(EpochEnded)] == [0, 1, 2]
    rates = model.transform(data).groupBy("clicked").agg(F.avg(vector_to_array("probability")[1])).collect()
    not_clicked, clicked = (rate for _, rate in sorted(rates))
    assert clicked > not_clicked + 0.05
    path = f"file://{folder}/clicks"
    for _ in range(2):
        model.write().overwrite().save(path)
    loaded = CTRClassificationModel.load(path)
    probabilities = scores(model.transform(data), "probability")
    assert scores(loaded.transform(data), "probability") == probabilities
    keys = model.embeddings("item", data).filter("category IS NOT NULL").collect()
    assert len(keys) == 30
    for row in keys[:3]:
        assert row["vector"] == pytest.approx(loaded.vectors("item", [row["category"]])[0].tolist(), abs=1e-6)
    loaded.write().overwrite().save(path)
    assert scores(loaded.transform(data), "probability") == probabilities
    assert scores(CTRClassificationModel.load(path).transform(data), "probability") == probabilities


def a_fit_begins_with_a_trained_model(spark: SparkSession, folder: str) -> None:
    settings = {"storeUri": f"file://{folder}/store", "validationFraction": 0.2, "seed": 1}
    first = linear(epochs=4, **settings).fit(separable(spark))
    again = linear(epochs=1, warmStartFrom=first, **settings).fit(separable(spark))
    assert again.summary.history[0]["train_loss"] < first.summary.history[1]["train_loss"]


def a_store_of_this_machine_alone_is_refused(spark: SparkSession, folder: str) -> None:
    before, seen = os.getcwd(), Seen()
    os.chdir(folder)  # of each process its own: Spark's workers stay where the server was started
    try:
        with pytest.raises(StoreError, match="own disk, which executors on other hosts do not see.*Hint: set storeUri"):
            linear(storeUri="file:///proc/self/cwd/store", listeners=[seen]).fit(separable(spark))
    finally:
        os.chdir(before)
    assert seen.events == []
    assert files_in(Path(folder)) == []


def newcomers_are_told_what_to_do(spark: SparkSession, folder: str) -> None:
    """Each case of `test_newcomers.py` with one estimator, but for what takes another session or waits for slots."""
    waits = "more workers than slots" if not session_of(spark).master().startswith("local[") else ""
    for name, wrong in CASES.items():
        if not wrong.session and name != waits:
            check_in_time(spark, Path(folder) / name, next(iter(wrong.of)), wrong)


def a_fit_that_fails_leaves_nothing(spark: SparkSession, folder: str) -> None:
    seen = Seen()
    estimator = linear(epochs=1, storeUri=f"file://{folder}/store", listeners=[seen], env={"FAIL": "1"})
    with pytest.raises(RankFailedError, match="this loss fails on ranks"):
        estimator.setLoss(_fails_on_ranks).fit(separable(spark))
    assert len(seen.of(FitFailed)) == 1
    assert not list((Path(folder) / "store" / "runs").glob("*")), "nothing half-written stays"


def _fails_on_ranks(output: Any, label: Any) -> Any:
    if "FAIL" in os.environ:
        raise ValueError("this loss fails on ranks")
    return (output.squeeze(-1) - label.float()) ** 2
