"""What estimators know of MLflow's runs: copies are made where `fit` was called, and fitted anywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql.types import StructType

from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassifier, TorchEstimator, base
from hvdspark.tracking import ActiveRun, Caller

RUN = ActiveRun("http://a", "run", "0", 1)


@pytest.mark.parametrize("kind", [TorchEstimator, CTRClassifier])
def test_a_copy_knows_the_run_that_is_active_where_it_is_made(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = kind()
    monkeypatch.setattr(base, "active_run", lambda: RUN)
    copied = estimator.copy()
    monkeypatch.setattr(base, "active_run", lambda: None)
    assert estimator.caller == Caller()
    assert estimator.copy().caller == Caller()
    assert copied.caller == Caller(RUN)
    assert copied.copy({copied.seed: 2}).caller == Caller(RUN, tried="seed=2")


def test_candidates_know_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    callers = []
    monkeypatch.setattr(TorchEstimator, "_train", lambda self, dataset: callers.append(self.caller))
    monkeypatch.setattr(base, "active_run", lambda: RUN)
    estimator = TorchEstimator()
    rows: Any = SimpleNamespace(isStreaming=False, schema=StructType([]))  # of which nothing else is asked
    models = estimator.fitMultiple(rows, [{estimator.seed: 1}, {}])
    monkeypatch.setattr(base, "active_run", lambda: None)
    for _ in models:
        pass
    estimator.fit(rows)
    assert callers == [Caller(RUN, candidate=True, tried="seed=1"), Caller(RUN, candidate=True), Caller()]


def test_the_name_of_a_candidate_does_not_tell_what_env_is_set_to() -> None:
    estimator = TorchEstimator()
    assert (
        estimator.copy({estimator.env: {"TOKEN": "secret"}, estimator.seed: 2}).caller.tried == "env=['TOKEN'], seed=2"
    )


def test_a_password_is_no_part_of_a_param() -> None:
    for allowed in ("", "http://host:5000", "databricks", "sqlite:////data/mlflow.db", "https://user@host"):
        assert TorchEstimator(trackingUri=allowed).getOrDefault("trackingUri") == allowed
    with pytest.raises(ConfigurationError, match=r"trackingUri.*MLFLOW_TRACKING_PASSWORD") as caught:
        TorchEstimator(trackingUri="https://user:secret@host")
    assert "secret" not in str(caught.value)
