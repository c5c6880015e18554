"""What a fit says of what an interrupt takes along. Everything else about it needs a session: tests/spark."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from hvdspark.estimators.fit import _say_what_is_lost
from hvdspark.store import Store


@pytest.mark.parametrize(
    ("epochs", "error", "said"),
    [(2, KeyboardInterrupt(), "epoch-00001"), (0, KeyboardInterrupt(), ""), (2, ValueError("its own words"), "")],
)
def test_an_interrupt_names_the_checkpoint_that_goes_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, epochs: int, error: BaseException, said: str
) -> None:
    store = Store(tmp_path.as_uri())
    for epoch in range(epochs):
        store.make_directory(f"runs/r/checkpoints/epoch-{epoch:05d}")
    with caplog.at_level(logging.WARNING, "hvdspark"):
        _say_what_is_lost(store, "r", error)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
