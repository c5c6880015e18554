"""Which run a fit is written to."""

from __future__ import annotations

import sys
import types

import pytest

from hvdspark.errors import DependencyError
from hvdspark.tracking import active_run, listeners, runs
from hvdspark.tracking.target import ActiveRun, Caller, Target, name_of, target_of

HERE, THERE = 1, 2
A = ActiveRun("http://a", "run-a", "7", HERE)
OF_CALLER = ActiveRun("http://a", "run-c", "7", THERE)
OVER = ActiveRun("http://a", "run-o", "7", HERE)


@pytest.mark.parametrize(
    ("uri", "here", "caller", "target"),
    [
        (None, None, Caller(), None),
        (None, A, Caller(), Target("http://a", A)),
        ("", A, Caller(), None),
        ("http://a/", A, Caller(), Target("http://a", A)),
        ("http://b", A, Caller(), Target("http://b")),
        ("http://b", None, Caller(), Target("http://b")),
        ("http://b", None, Caller(candidate=True), Target("http://b")),
        (None, A, Caller(A, candidate=True), Target("http://a", A, nested=True)),
        # Of a pool of threads: the run of the thread that asked for all of them.
        (None, None, Caller(OF_CALLER), Target("http://a", OF_CALLER, nested=True)),
        (None, None, Caller(OF_CALLER, candidate=True), Target("http://a", OF_CALLER, nested=True)),
        ("http://b", None, Caller(OF_CALLER), Target("http://b")),
        # A thread's own run wins, and one that is over in this thread is over.
        (None, A, Caller(OF_CALLER), Target("http://a", A)),
        (None, None, Caller(OVER), None),
    ],
)
def test_where_a_fit_is_written_to(
    uri: str | None, here: ActiveRun | None, caller: Caller, target: Target | None
) -> None:
    assert target_of(uri, here, caller, HERE) == target


def test_who_never_imported_mlflow_has_no_active_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    assert active_run() is None
    assert listeners(None, Caller(), "fit", "E") == ()
    assert "mlflow" not in sys.modules


def test_an_mlflow_that_fails_is_no_active_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", types.ModuleType("mlflow"))  # another thread is about to import it
    assert active_run() is None


def test_a_server_is_asked_for_and_there_is_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"trackingUri.*pip install 'hvdspark\[mlflow\]'"):
        listeners("http://a", Caller(), "fit", "E")
    assert listeners("", Caller(), "fit", "E") == ()


@pytest.mark.parametrize(
    ("target", "caller", "name"),
    [
        (Target("http://a", A, nested=True), Caller(tried="learningRate=0.1"), "learningRate=0.1"),
        (Target("http://a"), Caller(candidate=True, tried="learningRate=0.1"), "learningRate=0.1"),
        (Target("http://a"), Caller(tried="learningRate=0.1"), "a-fit"),
        (Target("http://a", A, nested=True), Caller(candidate=True), "a-fit"),
    ],
)
def test_candidates_are_named_by_what_they_try(target: Target, caller: Caller, name: str) -> None:
    assert name_of(target, caller, "a-fit") == name
