"""What all estimators do alike, without a session."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hvdspark.errors import UnknownParamError
from hvdspark.estimators import CTRClassifier, TorchEstimator
from hvdspark.events import FitListener


@pytest.mark.parametrize("kind", [TorchEstimator, CTRClassifier])
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


def test_objects_are_set_by_name() -> None:
    module = nn.Linear(1, 1)
    estimator = TorchEstimator(model=module).setParams(loss="mse", epochs=2, batchSize=None)
    assert (estimator.getModel(), estimator.getLoss(), estimator.getOptimizer()) == (module, "mse", "adam")
    assert (estimator.getEpochs(), estimator.getBatchSize()) == (2, 4096)  # type: ignore[attr-defined]
