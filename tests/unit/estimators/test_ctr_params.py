"""Params of click models that are given by column, and the program that they make; needs no session."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.tuning import ParamGridBuilder

from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassifier, TorchEstimator
from hvdspark.estimators.ctr_program import click_program
from hvdspark.models.click import ClickModel

CATEGORIES = ["home", "away", "user"]


def classifier(**changes: Any) -> CTRClassifier:
    return CTRClassifier(**{"architecture": "wide_deep", "categoricalCols": CATEGORIES, "embeddingDim": 4, **changes})


def module_of(estimator: CTRClassifier) -> ClickModel:
    made = click_program(estimator, [], CATEGORIES, [], estimator.pace(1000)).module
    assert isinstance(made, ClickModel)
    return made


def test_each_table_gets_what_is_said_of_it() -> None:
    made = module_of(
        classifier(
            sharedTables={"place": ["home", "away"]},
            embeddingDims={"user": 7},
            embeddingOptimizers={"user": "adam", "place": "sgd"},
            embeddingMinCounts={"place": 3},
            embeddingMinCount=2,
            embeddingAtLimit="refuse",
            embeddingAtLimits={"user": "evict"},
        )
    )
    assert made.rows is not None
    place, user = made.rows.tables["place"], made.rows.tables["user"]
    assert (place.dim, user.dim) == (5, 8)
    assert (place.admission.min_count, user.admission.min_count) == (3, 2)
    assert (place.at_limit, user.at_limit) == ("refuse", "evict")
    assert (place.optimizer.name, user.optimizer.name) == ("sgd", "adam")
    adam = module_of(classifier(embeddingOptimizer="adam")).rows
    assert adam is not None
    assert user.optimizer == adam.tables["user"].optimizer, "learning rates follow from the optimizer"
    assert made.table_of == {"home": "place", "away": "place", "user": "user"}


def test_nothing_said_is_a_table_for_each_column() -> None:
    assert module_of(classifier()).of_tables == {}
    assert list(module_of(classifier()).table_of.values()) == CATEGORIES


def test_an_own_learning_rate_is_that_of_all_tables() -> None:
    made = module_of(classifier(embeddingLearningRate=0.5, embeddingOptimizers={"user": "adam"}))
    assert made.rows is not None
    rates = {table.optimizer.learning_rate for table in made.rows.tables.values()}
    assert rates == {0.5}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embeddingDims": {"usr": 3}}, r"'usr' \(in embeddingDims\).*'user'"),
        (
            {"embeddingOptimizers": {"home": "adam"}, "sharedTables": {"place": ["home", "away"]}},
            "'home'.*shares table 'place': name that",
        ),
        ({"embeddingDims": {"user": 3}, "architecture": "dlrm"}, "multiplied.*one dim"),
        ({"sharedTables": {"place": ["hom"]}}, "not a column of categories: 'hom'"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        module_of(classifier(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"embeddingDims": {"user": 0}}, ConfigurationError, "out of range.*embeddingDims.*at least 1"),
        ({"learningRate": float("inf")}, ConfigurationError, "inf.*learningRate.*above 0 and finite"),
        ({"embeddingDims": 3}, TypeError, "dict of whole numbers"),
        ({"embeddingOptimizers": {"user": "adamw"}}, ConfigurationError, "embeddingOptimizers.*rowwise_adagrad"),
        ({"embeddingMinCounts": {"user": "many"}}, TypeError, "many"),
        ({"sharedTables": {"place": "home"}}, TypeError, "home"),
        ({"sharedTables": {"place": ["home", "home"]}}, ConfigurationError, "each once.*sharedTables"),
    ],
)
def test_what_no_fit_could_take_is_refused_when_it_is_set(
    changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        classifier(**changes)


def test_they_are_json_and_can_be_searched_over() -> None:
    given = {"sharedTables": {"place": ["home", "away"]}, "embeddingDims": {"user": 7}}
    estimator = classifier(**given)
    for name, value in given.items():
        assert json.loads(json.dumps(estimator.getOrDefault(name))) == value
    grid = ParamGridBuilder().addGrid(estimator.embeddingDims, [{}, {"user": 2}]).build()
    dims = [module_of(estimator.copy(params)).rows_of("user").width for params in grid]
    assert dims == [4, 2]
    assert estimator.getEmbeddingDims() == {"user": 7}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [CTRClassifier, TorchEstimator])
def test_a_model_to_begin_with_is_kept_as_its_uri(kind: type[Any]) -> None:
    class Fitted:
        uri = "file:///store/runs/a/model"

    assert kind(warmStartFrom=Fitted()).getWarmStartFrom() == Fitted.uri
    assert kind().setWarmStartFrom("s3://bucket/model").getWarmStartFrom() == "s3://bucket/model"
    assert not kind().isDefined("warmStartFrom")
    estimator = kind()
    assert estimator.copy({estimator.warmStartFrom: Fitted()}).getWarmStartFrom() == Fitted.uri, "of a param map, too"
    for wrong in (3, PipelineModel([])):
        with pytest.raises(
            TypeError, match=rf"warmStartFrom.*{type(wrong).__name__} to the URI.*of a pipeline the stage"
        ):
            kind(warmStartFrom=wrong)
