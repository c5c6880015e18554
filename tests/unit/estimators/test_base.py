"""What all estimators do alike, without a session."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.ml import Pipeline
from pyspark.sql.types import StructType
from torch import nn

from hvdspark.errors import ConfigurationError, UnknownParamError
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchEstimator, TorchRegressor
from hvdspark.estimators.params import SPEC_PARAMS
from hvdspark.events import FitListener
from hvdspark.specs import TrainSpec

ROWS: Any = SimpleNamespace(isStreaming=False, schema=StructType([]))  # of which nothing else is asked


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


@pytest.mark.parametrize("kind", [TorchEstimator, CTRClassifier])
def test_candidates_are_copies_of_a_copy_and_those_of_one_call_of_fit_multiple(kind: type[Any]) -> None:
    estimator = kind()
    alone = estimator.copy({estimator.epochs: 2})
    assert estimator.candidates is alone.candidates is None, "nothing is kept for a fit with other Params"
    pipeline = Pipeline(stages=[estimator]).copy()
    tried = [pipeline.copy({estimator.epochs: epochs}).getStages()[0] for epochs in (1, 2)]
    assert [one.getEpochs() for one in tried] == [1, 2]
    assert tried[0].candidates is tried[1].candidates
    assert not tried[0].candidates.one_state, "whoever copies twice may come back when the rows are others"
    assert pipeline.copy().copy().getStages()[0].candidates is not tried[0].candidates

    fitted = []

    class Noting(kind):  # type: ignore[misc]
        def _train(self, dataset: Any) -> Any:
            fitted.append((self.getEpochs(), self.candidates))
            return self

    estimator = Noting()
    for search in (1, 2):
        maps = [{estimator.epochs: epochs} for epochs in (search, 5)]
        assert [model.getEpochs() for model in estimator.fit(ROWS, maps)] == [search, 5]
    assert [epochs for epochs, _ in fitted] == [1, 5, 2, 5]
    ids = [candidates.id for _, candidates in fitted if candidates.one_state]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert estimator.candidates is None


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
