"""Our estimators and models as stages: what pyspark's own tests of pipelines and persistence ask, asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import MaxAbsScaler, MaxAbsScalerModel, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from hvdspark.estimators import CTRClassifier, TorchEstimator, TorchModel
from tests.spark.searches import candidate, clicks, params_of, same_params
from tests.spark.toys import scores, separable

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(("make", "kind"), [(candidate, TorchEstimator), (clicks, CTRClassifier)])
def test_an_estimator_comes_back_as_it_was(
    spark: SparkSession, make: Any, kind: Any, store_uri: str, tmp_path: Path
) -> None:
    estimator = make(store_uri, validationFraction=0.25, env={"A": "1"}, seed=11)
    estimator.save(str(tmp_path / "estimator"))
    loaded = kind.load(str(tmp_path / "estimator"))
    same_params(estimator, loaded)
    assert loaded.epochs.parent == loaded.uid == estimator.uid
    assert type(loaded.uid) is str
    assert not loaded.isDefined("monitor"), "what was not set is not set by loading"
    assert not loaded.isSet("shuffle")
    assert loaded.explainParams() == estimator.explainParams()


@pytest.mark.slow
def test_a_nested_pipeline_is_fitted_scored_saved_and_loaded(
    spark: SparkSession, store_uri: str, tmp_path: Path
) -> None:
    array = vector_to_array("x")
    data = separable(spark, 200).withColumns({name: array[k] for k, name in enumerate("abc")}).drop("x")
    assembler = VectorAssembler(outputCol="features").setInputCols(["a", "b", "c"])
    scaler = MaxAbsScaler(inputCol="features", outputCol="nothing")
    estimator = candidate(store_uri, featureCols=["scaled"], learningRate=0.5)
    pipeline = Pipeline(stages=[assembler, Pipeline(stages=[scaler, estimator])])
    model = pipeline.fit(data, {scaler.outputCol: "scaled", estimator.epochs: 2, estimator.predictionCol: "p"})
    assert (estimator.getEpochs(), scaler.getOutputCol()) == (1, "nothing"), "the stages are what they were"
    assert isinstance(model.stages[0], VectorAssembler)
    scaled, fitted = model.stages[1].stages
    assert isinstance(scaled, MaxAbsScalerModel)
    assert isinstance(fitted, TorchModel)
    assert (fitted.uid, fitted.getEpochs(), fitted.getPredictionCol()) == (estimator.uid, 2, "p")
    assert params_of(fitted)["learningRate"] == 0.5

    scored = model.transform(data)
    assert scored.columns == [*data.columns, "features", "scaled", "raw", "p"]
    assert scored.count() == 200
    assert scored.where((F.col("p") == 1.0) == (F.col("y") == 1)).count() > 150

    for one, kind in ((pipeline, Pipeline), (model, PipelineModel)):
        path = str(tmp_path / kind.__name__)
        one.write().overwrite().save(path)
        loaded = kind.load(path)
        same_params(one, loaded)
        assert str(loaded) == str(one)
    again = loaded.transform(data, {fitted.predictionCol: "q"})
    assert scores(again, "q") == scores(scored, "p")
    assert loaded.stages[1].stages[1].summary.history == fitted.summary.history
