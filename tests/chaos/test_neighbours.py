"""Two fits at once in one session, in the same executor: what ends one of them, the other one does not notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyspark.sql import SparkSession

from hvdspark.errors import HvdSparkError, MemoryBudgetError, RankFailedError
from hvdspark.launch.budget import RANK_MEMORY
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.toys import linear, separable

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(300)]

_WAIT_S = 120.0
RAISES, KILLED, LEAKS = "raises", "killed", "leaks"


def wait_for(path: Path) -> None:
    """Wait until a file is there; those of other processes have no event. Raises TimeoutError."""
    deadline_s = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {path.name} after {_WAIT_S:g} s")
        time.sleep(0.01)


class InTheMiddle(Callback):
    """Holds a fit in its middle until the other one has ended."""

    def __init__(self, folder: Path) -> None:
        self._here, self._other_ended = folder / "here", folder / "other-ended"

    def on_batch_end(self, state: TrainState) -> None:
        if (state.epoch, state.step) == (1, 3):
            self._here.touch()
            wait_for(self._other_ended)


class Ends(Callback):
    """Ends a fit while the other one is in its middle."""

    def __init__(self, folder: Path, how: str) -> None:
        self._other_here, self._how, self._held = folder / "here", how, list[torch.Tensor]()

    def on_batch_end(self, state: TrainState) -> None:
        if state.step < 2:
            return
        wait_for(self._other_here)
        if self._how == RAISES:
            raise ValueError("this fit fails")
        if self._how == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            self._held.append(torch.ones(16 << 20))  # 64 MiB


@pytest.fixture
def limited(spark: SparkSession) -> Iterator[SparkSession]:
    """A session whose ranks may have 1 GiB each."""
    spark.conf.set(RANK_MEMORY, "1g")
    try:
        yield spark
    finally:
        spark.conf.unset(RANK_MEMORY)


@pytest.mark.parametrize("how", [RAISES, KILLED, LEAKS])
def test_a_fit_beside_one_that_ends_badly_is_bit_for_bit_as_if_alone(
    limited: SparkSession, store_uri: str, tmp_path: Path, how: str, nothing_left_behind: None
) -> None:
    rows = separable(limited)
    settings: dict[str, Any] = {"storeUri": store_uri, "optimizer": "adam", "epochs": 3}
    alone = linear(**settings).fit(rows)

    neighbour = linear(callbacks=[InTheMiddle(tmp_path)], **settings).fitAsync(rows)
    try:
        ending = linear(callbacks=[Ends(tmp_path, how)], numWorkers=1, maxRestarts=0, **settings).fitAsync(rows)
        error = ending.exception(timeout=_WAIT_S)
        assert neighbour.running(), "both were at work at the same time"
    finally:
        (tmp_path / "other-ended").touch()
    beside = neighbour.result(timeout=_WAIT_S)

    assert isinstance(error, HvdSparkError)
    check(error, how)
    assert beside.module().state_dict().keys() == alone.module().state_dict().keys()
    for name, tensor in alone.module().state_dict().items():
        assert torch.equal(beside.module().state_dict()[name], tensor), name
    losses = [[row["train_loss"] for row in model.summary.history] for model in (alone, beside)]
    assert losses[0] == losses[1]
    store = Store(store_uri)
    assert store.list("leases") == []
    assert len(store.list("runs")) == 2, "of the one that ended badly nothing stays"


def check(error: HvdSparkError, how: str) -> None:
    """Whether it says what has happened."""
    if how == LEAKS:
        assert isinstance(error, MemoryBudgetError)
        assert error.limit == 1 << 30
        assert "rank 0 on host" in str(error)
        assert f"raise {RANK_MEMORY}" in str(error)
        return
    assert isinstance(error, RankFailedError)
    assert error.kind == {RAISES: "exception", KILLED: "signal"}[how]
    assert {RAISES: "ValueError: this fit fails", KILLED: "SIGKILL"}[how] in str(error)
