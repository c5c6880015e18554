"""What all estimators do alike, without a session."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from torch import nn

from hvdspark.errors import ConfigurationError, UnknownParamError
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchEstimator, TorchRegressor
from hvdspark.estimators.params import SPEC_PARAMS
from hvdspark.events import FitListener
from hvdspark.specs import TrainSpec


@pytest.mark.parametrize("kind", [TorchEstimator, TorchClassifier, TorchRegressor, CTRClassifier])
def test_listeners_are_no_param_and_survive_copy(kind: type[Any]) -> None:
    listener = FitListener()
    estimator = kind(listeners=[listener], epochs=3)
    assert not estimator.hasParam("listeners")
    assert estimator.getListeners() == (listener,)
    copied = estimator.copy({estimator.batchSize: 7})
    assert copied.getListeners() == (listener,)
    assert copied.setListeners([]).getListeners() == ()
    assert estimator.getListeners() == (listener,), "a copy does not change its original"
    assert estimator.setParams(listeners=(listener, listener), seed=4) is estimator
    assert (estimator.getListeners(), estimator.getSeed()) == ((listener, listener), 4)
    assert kind().getListeners() == ()
    with pytest.raises(UnknownParamError, match="did you mean listeners"):
        estimator.setParams(listener=[listener])


@pytest.mark.parametrize("stranger", [print, FitListener, "bar"])
def test_what_is_no_listener_is_refused_when_it_is_given(stranger: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{type(stranger).__name__}.*in listeners.*Hint: give instances"):
        TorchEstimator(listeners=[FitListener(), stranger])


def test_objects_are_set_by_name() -> None:
    module = nn.Linear(1, 1)
    estimator = TorchEstimator(model=module).setParams(loss="mse", epochs=2, batchSize=None)
    assert (estimator.getModel(), estimator.getLoss(), estimator.getOptimizer()) == (module, "mse", "adam")
    assert (estimator.getEpochs(), estimator.getBatchSize()) == (2, 4096)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [TorchEstimator, TorchClassifier, TorchRegressor, CTRClassifier])
def test_the_constructor_names_every_param_and_repeats_no_default(kind: type[Any]) -> None:
    named = inspect.signature(kind.__init__).parameters
    params = {param.name for param in kind().params}
    objects = {"self", "model", "loss", "optimizer", "callbacks", "listeners"}
    assert params == named.keys() - objects
    assert {name for name in params if named[name].default is not None} == set()


def test_defaults_and_limits_are_those_of_the_spec() -> None:
    fields = {field.name: field for field in dataclasses.fields(TrainSpec)}
    estimator = TorchEstimator()
    for field, name in SPEC_PARAMS.items():
        default = None if fields[field].default is dataclasses.MISSING else fields[field].default
        if default is not None:
            assert estimator.getOrDefault(name) == default, name
        limits = fields[field].metadata.get("range")
        if limits is not None:
            assert str(limits) in estimator.explainParam(name)
            with pytest.raises(ConfigurationError, match=f"out of range.*in {name}.*it must be {limits}"):
                estimator._set(**{name: limits.low if limits.open else int(limits.low) - 1})
        for choice in fields[field].metadata.get("choices", ()):
            estimator._set(**{name: choice})
