"""Our estimators in Spark ML's searches: what pyspark's tests of tuning ask of LogisticRegression, asked of them."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import OneVsRest, OneVsRestModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
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

from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassificationModel, TorchModel
from tests.spark.searches import (
    RATES,
    Watch,
    auc,
    candidate,
    classifier,
    clicks,
    params_of,
    rates,
    same_params,
    shifting,
    unprovable,
    written,
)
from tests.spark.toys import scores, separable

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = 200


class Search:
    """A TrainValidationSplit of two candidates of two ranks each, side by side on fewer slots than they need."""

    def __init__(self, spark: SparkSession, store_uri: str) -> None:
        self.watch = Watch(store_uri)
        self.data = separable(spark, ROWS)
        self.estimator = candidate(store_uri, numWorkers=2, listeners=[self.watch])
        self.search = TrainValidationSplit(
            estimator=self.estimator,
            estimatorParamMaps=rates(self.estimator),
            evaluator=auc(),
            parallelism=2,
            seed=5,
            collectSubModels=True,
        )
        self.model = self.search.fit(self.data)


@pytest.fixture(scope="module")
def tuned(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Search:
    return Search(spark, tmp_path_factory.mktemp("store").as_uri())


def test_a_grid_is_converted_and_checked_like_any_value() -> None:
    estimator = candidate("file:///nowhere")
    grid = ParamGridBuilder().addGrid(estimator.learningRate, [0.5, 1]).baseOn({estimator.epochs: 3}).build()
    assert [[type(value) for value in point.values()] for point in grid] == [[float, int], [float, int]]
    with pytest.raises(ConfigurationError, match="out of range: 0.*batchSize"):
        ParamGridBuilder().addGrid(estimator.batchSize, [0]).build()
    with pytest.raises(TypeError):
        ParamGridBuilder().addGrid("batchSize", [1])  # type: ignore[arg-type]
    tried = estimator.copy(grid[1])
    assert (tried.getLearningRate(), tried.getEpochs(), tried.uid) == (1.0, 3, estimator.uid)
    assert estimator.getEpochs() == 1, "the original is what it was"
    with pytest.raises(ConfigurationError, match="out of range"):
        estimator.copy({estimator.batchSize: -1})
    assert "(default: 4096, current: 32)" in tried.explainParam("batchSize")


def test_the_best_candidate_wins_and_each_carries_its_params(tuned: Search) -> None:
    low, high = tuned.model.validationMetrics
    assert high > low
    assert high > 0.75
    best = tuned.model.bestModel
    assert isinstance(best, TorchModel)
    assert best.uid == tuned.estimator.uid
    assert best.getLearningRate() == RATES[1]
    assert [model.getLearningRate() for model in tuned.model.subModels] == RATES
    for model in (best, *tuned.model.subModels):
        assert {name for name, value in params_of(tuned.estimator).items() if params_of(model)[name] != value} <= {
            "learningRate"
        }
    assert auc().evaluate(tuned.model.transform(tuned.data)) > 0.75
    fields = best.transformSchema(tuned.data.schema)
    assert fields == best.transform(tuned.data).schema


def test_the_candidates_of_a_fold_share_one_dataset_and_wait_for_slots(tuned: Search) -> None:
    assert sorted(tuned.watch.used.values()) == [1, 2], "one for both candidates, one for the best on all rows"
    assert tuned.watch.most == 2, "on three slots there is room for one of them"
    (first, *_) = tuned.watch.waited
    assert (first.slots, first.free, first.total, first.ahead) == (2, 1, 3, 1)


def test_a_copy_of_a_search_and_of_its_model(tuned: Search) -> None:
    copied, model = tuned.search.copy(), tuned.model.copy()
    assert params_of(copied).keys() == params_of(tuned.search).keys()
    assert copied.getEstimator().uid == tuned.estimator.uid
    for name in ("collectSubModels", "parallelism", "seed", "trainRatio"):
        assert copied.getOrDefault(name) == tuned.search.getOrDefault(name)
    assert (model.bestModel.uid, model.getSeed(), model.getTrainRatio()) == (tuned.estimator.uid, 5, 0.75)
    assert model.validationMetrics == tuned.model.validationMetrics
    model.validationMetrics[0] = "changed"
    model.subModels[0].setPredictionCol("changed")
    assert tuned.model.validationMetrics[0] != "changed"
    assert tuned.model.subModels[0].getPredictionCol() == "prediction"


def test_a_fitted_search_is_saved_with_its_models_and_without(tuned: Search, tmp_path: Path) -> None:
    tuned.model.save(str(tmp_path / "with"))
    tuned.model.write().option("persistSubModels", "false").save(str(tmp_path / "without"))
    loaded = TrainValidationSplitModel.load(str(tmp_path / "with"))
    assert TrainValidationSplitModel.load(str(tmp_path / "without")).subModels is None
    assert loaded.validationMetrics == tuned.model.validationMetrics
    assert all(loaded.isSet(param) for param in loaded.params)
    for one, other in zip(
        [tuned.model.bestModel, *tuned.model.subModels], [loaded.bestModel, *loaded.subModels], strict=True
    ):
        same_params(one, other)
    assert len(loaded.copy().subModels) == len(RATES)
    few = tuned.data.limit(20)
    assert scores(loaded.transform(few)) == scores(tuned.model.transform(few))
    assert _points(loaded.getEstimatorParamMaps()) == _points(rates(tuned.estimator))


def test_what_a_cross_validator_found_is_saved_with_every_fold(tuned: Search, tmp_path: Path) -> None:
    low, high = tuned.model.subModels
    settings = {"estimatorParamMaps": rates(tuned.estimator), "evaluator": auc(), "numFolds": 2, "foldCol": "fold"}
    found = CrossValidatorModel(high, [0.25, 0.75], [[low, high], [low, high]], [0.125, 0.0])
    CrossValidator(estimator=tuned.estimator, **settings)._copyValues(found).save(str(tmp_path / "found"))
    loaded = CrossValidatorModel.load(str(tmp_path / "found"))
    assert (loaded.avgMetrics, loaded.stdMetrics) == ([0.25, 0.75], [0.125, 0.0])
    assert (loaded.getNumFolds(), loaded.getFoldCol()) == (2, "fold")
    assert _points(loaded.getEstimatorParamMaps()) == _points(rates(tuned.estimator))
    same_params(loaded.bestModel, high)
    assert [[model.getLearningRate() for model in fold] for fold in loaded.subModels] == [RATES, RATES]
    few = tuned.data.limit(20)
    assert scores(loaded.transform(few)) == scores(high.transform(few))


def _points(grid: list[dict[Any, Any]]) -> list[dict[tuple[str, str], Any]]:
    return [{(param.parent, param.name): value for param, value in point.items()} for point in grid]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        (CrossValidator, candidate),
        pytest.param(TrainValidationSplit, clicks, marks=pytest.mark.slow),
        pytest.param(CrossValidator, clicks, marks=pytest.mark.slow),
        pytest.param(TrainValidationSplit, candidate, marks=pytest.mark.slow),
        pytest.param(TrainValidationSplit, classifier, marks=pytest.mark.slow),
    ],
)
def test_a_search_is_saved_before_it_is_fitted(
    spark: SparkSession, kind: Any, make: Any, store_uri: str, tmp_path: Path
) -> None:
    estimator = make(store_uri)
    assembler = VectorAssembler(inputCols=["id"], outputCol="x")
    alone = OneVsRest(classifier=estimator) if make is classifier else estimator
    for whole in (alone, Pipeline(stages=[assembler, Pipeline(stages=[alone])])):
        search = kind(estimator=whole, estimatorParamMaps=rates(estimator), evaluator=auc(), parallelism=2, seed=3)
        path = str(tmp_path / whole.uid)
        search.save(path)
        loaded = kind.load(path)
        same_params(search.getEstimator(), loaded.getEstimator())
        same_params(search.getEvaluator(), loaded.getEvaluator())
        assert _points(loaded.getEstimatorParamMaps()) == _points(rates(estimator))
        assert (loaded.uid, loaded.getParallelism(), loaded.getSeed()) == (search.uid, 2, 3)


@pytest.mark.slow
def test_a_grid_of_classifiers_is_saved(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    few, many = classifier(store_uri, batchSize=16), clicks(store_uri, batchSize=64)
    rest = OneVsRest(classifier=classifier(store_uri))
    grid = ParamGridBuilder().addGrid(rest.classifier, [few, many]).build()
    CrossValidator(estimator=rest, estimatorParamMaps=grid, evaluator=auc()).save(str(tmp_path / "search"))
    loaded = CrossValidator.load(str(tmp_path / "search"))
    same_params(rest, loaded.getEstimator())
    for point, one in zip(loaded.getEstimatorParamMaps(), (few, many), strict=True):
        ((param, value),) = point.items()
        assert (param.parent, param.name) == (rest.uid, "classifier")
        same_params(value, one)


@pytest.mark.slow  # test_unchanged.py has what can be proved
def test_rows_that_nobody_can_prove_are_written_once_for_all_maps(spark: SparkSession, store_uri: str) -> None:
    watch = Watch(store_uri)
    estimator = candidate(store_uri, weightCol="w", listeners=[watch])
    maps = [
        {estimator.learningRate: 0.5, estimator.predictionCol: "p"},
        {estimator.batchSize: 16, estimator.seed: 9, estimator.epochs: 2},
    ]
    before = written(spark)
    rows = unprovable(shifting(_assembled_later(separable(spark, ROWS))))
    models = estimator.fit(rows.withColumn("x", F.array("a", "b", "c")), maps)
    (size,) = watch.bytes.values()
    assert list(watch.used.values()) == [2], "none of these Params changes the data"
    assert size <= written(spark) - before < 1.5 * size, "and Spark wrote as much as there is"
    assert [(m.getLearningRate(), m.getPredictionCol(), m.getBatchSize(), m.getEpochs()) for m in models] == [
        (0.5, "p", 32, 1),
        (1e-3, "prediction", 16, 2),
    ]
    gc.collect()
    assert watch.left() == [], "none outlives the search"


@pytest.mark.slow
def test_candidates_in_a_pipeline_share_one_dataset_though_each_prepares_the_rows(
    spark: SparkSession, store_uri: str
) -> None:
    watch = Watch(store_uri)
    estimator = candidate(store_uri, listeners=[watch])
    data = _assembled_later(separable(spark, ROWS)).cache()
    pipeline = Pipeline(
        stages=[VectorAssembler(inputCols=["a", "b", "c"], outputCol="x"), Pipeline(stages=[estimator])]
    )
    models = pipeline.fit(data, [*rates(estimator), {estimator.validationFraction: 0.5}])
    assert list(watch.used.values()) == [2, 1]
    assert [model.stages[1].stages[0].getLearningRate() for model in models] == [*RATES, 1e-3]
    data.unpersist()


def _assembled_later(data: DataFrame) -> DataFrame:
    array = vector_to_array("x")
    return data.withColumns({name: array[k] for k, name in enumerate("abc")}).drop("x")


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_a_cross_validator_finds_the_better_one(
    spark: SparkSession, store_uri: str, tmp_path: Path, metric: str
) -> None:
    """Smaller is better for one metric, larger for the other; in turn and side by side the metrics are the same."""
    watch = Watch(store_uri)
    estimator = candidate(store_uri, loss="mse", rawPredictionCol=None, epochs=3, listeners=[watch])
    evaluator = RegressionEvaluator(labelCol="y", metricName=metric)
    search = CrossValidator(
        estimator=estimator, estimatorParamMaps=rates(estimator), evaluator=evaluator, numFolds=2, seed=1
    )
    data = separable(spark, ROWS)
    serial = search.fit(data)
    assert list(watch.used.values()) == [2, 2, 1]
    parallel = search.copy({search.parallelism: 2, search.collectSubModels: True}).fit(data)
    assert serial.avgMetrics == pytest.approx(parallel.avgMetrics, abs=1e-6)
    assert serial.stdMetrics == pytest.approx(parallel.stdMetrics, abs=1e-6)
    assert serial.bestModel.getLearningRate() == RATES[1]
    assert evaluator.isLargerBetter() == (parallel.avgMetrics[1] > parallel.avgMetrics[0])
    parallel.save(str(tmp_path / "model"))
    loaded = CrossValidatorModel.load(str(tmp_path / "model"))
    assert [[model.getLearningRate() for model in fold] for fold in loaded.subModels] == [RATES, RATES]
    assert np.allclose([loaded.avgMetrics, loaded.stdMetrics], [parallel.avgMetrics, parallel.stdMetrics])
    copied = loaded.copy()
    assert (copied.getNumFolds(), copied.getSeed(), copied.getFoldCol()) == (2, 1, "")


@pytest.mark.slow
def test_folds_that_the_user_gives(spark: SparkSession, store_uri: str) -> None:
    watch = Watch(store_uri)
    estimator = clicks(store_uri, listeners=[watch])
    data = separable(spark, ROWS).withColumns({"id": F.col("id") % 5, "fold": (F.col("id") % 2).cast("int")})
    search = CrossValidator(
        estimator=Pipeline(stages=[estimator]),
        estimatorParamMaps=rates(estimator),
        evaluator=auc(rawPredictionCol="rawPrediction"),
        numFolds=2,
        foldCol="fold",
        parallelism=2,
    )
    model = search.fit(data)
    assert list(watch.used.values()) == [2, 2, 1]
    assert isinstance(model.bestModel, PipelineModel)
    assert isinstance(model.bestModel.stages[0], CTRClassificationModel)
    for wrong, message in ((F.lit(-1), "Fold number must be in range"), (F.lit(0), "fold 0 is empty")):
        with pytest.raises(Exception, match=message):
            search.fit(data.withColumn("fold", wrong))


@pytest.mark.slow
def test_a_search_is_a_stage_of_a_pipeline(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    watch = Watch(store_uri)
    estimator = candidate(store_uri, listeners=[watch])
    search = TrainValidationSplit(
        estimator=estimator, estimatorParamMaps=rates(estimator), evaluator=auc(), parallelism=2
    )
    data = _assembled_later(separable(spark, ROWS))
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["a", "b", "c"], outputCol="x"), search])
    model = pipeline.fit(data)
    assert list(watch.used.values()) == [2, 1]
    model.save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert loaded.stages[1].bestModel.getLearningRate() == RATES[1]
    assert scores(loaded.transform(data)) == scores(model.transform(data))


@pytest.mark.slow
def test_one_against_the_rest_for_each_class(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    """Spark ML's own way to many classes, with classifiers of two: they are fitted side by side."""
    data = separable(spark, ROWS).withColumn("y", F.col("y") + (vector_to_array("x")[2] > 0.5).cast("int"))
    one = classifier(store_uri, epochs=4, learningRate=0.5)
    rest = OneVsRest(classifier=one, featuresCol="x", labelCol="y", weightCol="w", parallelism=3)
    model = rest.fit(data)
    assert [each.getWeightCol() for each in model.models] == ["w"] * 3
    scored = model.transform(data)
    assert scored.select("rawPrediction").first()["rawPrediction"].size == 3
    assert scored.where(F.col("prediction") == F.col("y")).count() > 0.5 * ROWS
    for whole, kind in ((rest, OneVsRest), (model, OneVsRestModel)):
        whole.save(str(tmp_path / kind.__name__))
        loaded = kind.load(str(tmp_path / kind.__name__))
        same_params(loaded, whole)
    assert scores(loaded.transform(data)) == scores(scored)


_PROGRAM = """
import json, sys
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import SparkSession
from tests.spark.searches import Watch, auc, candidate, rates, written
from tests.spark.toys import separable

slots, store = sys.argv[1:]
spark = SparkSession.builder.master(f"local[{slots}]").config("spark.ui.enabled", "false").getOrCreate()
watch = Watch(store)
estimator = candidate(store, numWorkers=2, startTimeout=60.0, listeners=[watch])
settings = {"estimatorParamMaps": rates(estimator), "evaluator": auc(), "numFolds": 2, "parallelism": 2}
search = CrossValidator(estimator=estimator, **settings)
before = written(spark)
model = search.fit(separable(spark, 200))
found = {"used": list(watch.used.values()), "bytes": sum(watch.bytes.values()), "written": written(spark) - before}
print(json.dumps({**found, "most": watch.most, "waited": len(watch.waited), "rate": model.bestModel.getLearningRate()}))
spark.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("slots", [4, 2])
def test_two_candidates_of_two_ranks_on_four_slots_and_on_two(spark_home: Path, store_uri: str, slots: int) -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PROGRAM, str(slots), store_uri]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["used"] == [2, 2, 1]
    assert found["bytes"] <= found["written"] < 1.5 * found["bytes"], "nothing is written twice"
    assert found["most"] == slots
    assert (found["waited"] > 0) == (slots == 2)
    assert found["rate"] == RATES[1]
