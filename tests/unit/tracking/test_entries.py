"""Names and values within MLflow's limits, held to MLflow's own validation."""

from __future__ import annotations

import pytest
from mlflow.utils import validation

from hvdspark.tracking.entries import MAX_KEY, MAX_PARAM, MAX_TAG, clipped, key, param, tag


@pytest.mark.parametrize(
    "name",
    [
        "val_auc",
        "time/loading_seconds",
        "ndcg@10",
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a//b",
        "a/",
        "./a",
        "Ünïcode",
        "x" * 999,
    ],
)
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    made = key(name)
    validation._validate_metric_name(made)
    validation._validate_param_name(made)
    validation._validate_tag_name(made)
    assert len(made) <= MAX_KEY <= validation.MAX_ENTITY_KEY_LENGTH


def test_names_that_are_right_stay() -> None:
    assert [key(name) for name in ("val_auc", "time/loading_seconds", "version.torch")] == [
        "val_auc",
        "time/loading_seconds",
        "version.torch",
    ]


def test_long_texts_say_how_much_is_missing() -> None:
    assert clipped("short", 5) == "short"
    assert clipped("x" * 1000, 30) == "x" * 9 + "... (1000 characters)"
    assert len(param("featureCols", ["column"] * 10_000).value) == MAX_PARAM <= validation.MAX_PARAM_VAL_LENGTH
    assert len(tag("hvdspark.error", "x" * 10_000).value) == MAX_TAG <= validation.MAX_TAG_VAL_LENGTH
    assert param("featureCols", ["a", "b"]).value == "['a', 'b']", "as autologging writes it"


def test_no_text_has_a_password() -> None:
    said = (
        "ConnectionError: HTTPConnectionPool: http://ann:s3cr@et@host:5000/api/2.0, file:///a@b, ann@host, s3a://b/c@d"
    )
    hidden = said.replace("ann:s3cr@et@host:5000", "***@host:5000")
    for text in (tag("hvdspark.error", said).value, param("x", said).value):
        assert text == hidden
