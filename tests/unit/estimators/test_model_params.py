"""Fitted models carry the Params of their estimators; needs no session."""

from __future__ import annotations

import pytest
from pyspark.ml.base import Model

from hvdspark.estimators import (
    CTRClassificationModel,
    CTRClassifier,
    TorchClassificationModel,
    TorchClassifier,
    TorchEstimator,
    TorchModel,
    TorchRegressionModel,
    TorchRegressor,
)
from hvdspark.estimators.ctr_params import CTRScoringParams
from hvdspark.estimators.params import TrainingParams
from hvdspark.estimators.torch_params import ClassifierScoringParams, RegressorScoringParams, TorchScoringParams

# To the model it is a number that was found, as on the models of Spark ML.
FOUND = {"numClasses"}


@pytest.mark.parametrize(
    ("estimator", "model", "scoring"),
    [
        (TorchEstimator(), TorchModel(), TorchScoringParams),
        (CTRClassifier(), CTRClassificationModel(), CTRScoringParams),
        (TorchClassifier(), TorchClassificationModel(), ClassifierScoringParams),
        (TorchRegressor(), TorchRegressionModel(), RegressorScoringParams),
    ],
    ids=["torch", "ctr", "classifier", "regressor"],
)
def test_a_model_has_every_param_of_its_estimator(estimator: TrainingParams, model: Model, scoring: type) -> None:
    assert {param.name for param in model.params} == {param.name for param in estimator.params} - FOUND
    estimator._set(learningRate=0.25, epochs=7)
    fitted = estimator._copyValues(model)
    assert (fitted.getOrDefault("learningRate"), fitted.copy().getOrDefault("epochs")) == (0.25, 7)
    assert fitted.getOrDefault("precision") == estimator.getOrDefault("precision")
    for param in model.params:
        suffix = param.name[0].upper() + param.name[1:]
        assert hasattr(model, f"get{suffix}"), param.name
        settable = hasattr(scoring, param.name) or param.name == "allowPickle"
        assert hasattr(model, f"set{suffix}") == settable, param.name
