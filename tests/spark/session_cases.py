"""What has to work in a session of any kind. `test_any_session.py` runs each of these where there is one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

import hvdspark
from hvdspark.errors import NotEnoughSlotsError, PersistenceError, RankFailedError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier, TorchEstimator, TorchModel
from hvdspark.events import CheckpointCommitted, DatasetReady, EpochEnded, FitEnded, FitFailed, SlotsAwaited
from hvdspark.launch import interruptible, new_tag
from hvdspark.session import session_of
from tests.spark.listeners import Seen
from tests.spark.toys import linear, scores, separable

_MORE_THAN_A_MESSAGE = 6 << 20  # of Connect


def ranks_meet_and_return_what_they_like(spark: SparkSession) -> None:
    def program(text: str) -> tuple[int, int, bytes]:
        collective = hvdspark.context().collective
        return collective.rank, collective.size, text.encode() * _MORE_THAN_A_MESSAGE

    answers = hvdspark.run(program, ["x"], num_workers=2, spark=spark)
    assert [(rank, size, len(text)) for rank, size, text in answers] == [
        (0, 2, _MORE_THAN_A_MESSAGE),
        (1, 2, _MORE_THAN_A_MESSAGE),
    ]


def more_ranks_than_slots_are_refused(spark: SparkSession) -> None:
    slots = session_of(spark).slots()
    assert slots is not None
    with pytest.raises(NotEnoughSlotsError, match=f"the session has {slots}.*master local.*lower num_workers to"):
        hvdspark.run(os.getpid, num_workers=slots + 1, spark=spark)


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
    assert (
        model.embeddings("item", data).filter("category is not null").count() == data.select("item").distinct().count()
    )
    path = f"file://{folder}/clicks"
    for _ in range(2):
        model.write().overwrite().save(path)
    loaded = CTRClassificationModel.load(path)
    probabilities = scores(model.transform(data), "probability")
    assert scores(loaded.transform(data), "probability") == probabilities
    with pytest.raises(PersistenceError, match="saved over the one that it was loaded from"):
        loaded.write().overwrite().save(path)
    assert scores(CTRClassificationModel.load(path).transform(data), "probability") == probabilities


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


def a_failure_names_its_rank(spark: SparkSession) -> None:
    def program() -> None:
        if hvdspark.context().rank == 1:
            raise ValueError("only here")
        time.sleep(60)

    with pytest.raises(RankFailedError, match="ValueError: only here") as failed:
        hvdspark.run(program, num_workers=2, spark=spark)
    assert failed.value.rank == 1


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


def an_interrupt_frees_the_executors(spark: SparkSession) -> None:
    """Called in the main thread, as Ctrl-C is."""
    pids: list[int] = []

    def busy() -> None:
        hvdspark.context().report({"event": "busy", "pid": os.getpid()})
        time.sleep(600)

    def heard(event: dict[str, Any]) -> None:
        if event["event"] == "busy":
            pids.append(event["pid"])
            if len(pids) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hvdspark.run(busy, num_workers=2, spark=spark, on_event=heard)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive

    def same(batches: Iterable[Any]) -> Iterator[Any]:
        yield from batches

    both = spark.range(0, 2, 1, 2).mapInArrow(same, "id long", barrier=True)
    assert len(interruptible(spark, both.collect, new_tag())) == 2, "the slots are free again"
