"""Parts of a fit that need no session."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from hvdspark.errors import ConfigurationError, StoreError
from hvdspark.specs import DatasetSpec, RowGroups, TrainSpec
from hvdspark.store import Store
from hvdspark.train.keeping import say_what_is_lost
from hvdspark.train.rehearsal import without_metrics


@pytest.mark.parametrize(
    ("epochs", "error", "said"),
    [
        (2, KeyboardInterrupt(), "the fit was interrupted: epoch-00001"),
        (0, KeyboardInterrupt(), ""),
        (2, StoreError("gone"), "the fit has failed: epoch-00001"),
        (0, StoreError("gone"), ""),
    ],
)
def test_a_fit_that_ends_early_names_the_checkpoint_that_goes_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int, error: BaseException, said: str
) -> None:
    store = Store(tmp_path.as_uri())
    for epoch in range(epochs):
        store.make_directory(f"runs/r/checkpoints/epoch-{epoch:05d}")
        store.make_directory("runs/r/checkpoints/rows")
    with caplog.at_level(logging.WARNING, "hvdspark"):
        say_what_is_lost(store, "r", error)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_default_metrics_that_do_not_suit_are_left_out_and_others_refused() -> None:
    spec = TrainSpec("r", "s", DatasetSpec("", (), RowGroups.of()), ("x",), ("y",), metrics=("logloss", "auc"))
    assert without_metrics(spec, {}, asked_for=True).metrics == ("logloss", "auc")
    assert without_metrics(spec, {"auc": "of vectors"}, asked_for=False).metrics == ("logloss",)
    with pytest.raises(ConfigurationError, match=r"auc .*of vectors.*in metrics.*Hint"):
        without_metrics(spec, {"auc": "of vectors"}, asked_for=True)
    with pytest.raises(ConfigurationError, match="in monitor"):
        without_metrics(dataclasses.replace(spec, monitor="val_auc"), {"auc": "of vectors"}, asked_for=False)
