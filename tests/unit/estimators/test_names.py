"""Names of the engine's arguments in errors become those of Params."""

from __future__ import annotations

import pytest

from hvdspark.errors import ConfigurationError, RankFailedError
from hvdspark.estimators.names import as_params, names_of_params


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lower batch_size or gradient_clip_norm", "lower batchSize or gradientClipNorm"),
        ("set num_workers=1, or handle_invalid='skip'", "set numWorkers=1, or handleInvalid='skip'"),
        ("feature_columns=['features']", "featureCols=['features']"),
        ("column 'batch_size' of \"store_uri\"", "column 'batch_size' of \"store_uri\""),
        ("spec.batch_size, my_batch_size, batch_size_", "spec.batch_size, my_batch_size, batch_size_"),
        ("the schedule and the seed", "the schedule and the seed"),
        ("/data/batch_size/store_uri", "/data/batch_size/store_uri"),
    ],
)
def test_names_become_those_of_params(text: str, said: str) -> None:
    assert as_params(text) == said


def test_an_error_keeps_its_class_and_value() -> None:
    with pytest.raises(ConfigurationError) as raised, names_of_params():
        raise ConfigurationError("batch_size is wrong", value="batch_size", where="batch_size", hint="lower batch_size")
    error = raised.value
    assert str(error) == "batchSize is wrong: 'batch_size' (in batchSize). Hint: lower batchSize"
    assert (error.what, error.value, error.where) == ("batchSize is wrong", "batch_size", "batchSize")


@pytest.mark.parametrize(
    "value", ["/data/x batch_size", "file:///a batch_size.d", ["batch_size and more"], {"batch_size ": 1}]
)
def test_a_value_of_any_kind_stays(value: object) -> None:
    with pytest.raises(ConfigurationError) as raised, names_of_params():
        raise ConfigurationError("batch_size is wrong", value=value)
    assert str(raised.value) == str(ConfigurationError("batchSize is wrong", value=value))


def test_what_a_rank_said_is_quoted() -> None:
    with pytest.raises(RankFailedError, match="batch_size"), names_of_params():
        raise RankFailedError(1, "h", "KeyError: batch_size", kind="exception", traceback_text="batch_size")
