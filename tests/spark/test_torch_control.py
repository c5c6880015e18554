"""Early stopping, callbacks, restarts, and what twenty fits leave behind."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession

from hvdspark.events import CheckpointCommitted, EpochEnded, GenerationStarted, RankLost
from hvdspark.train.callbacks import Callback, TrainState
from tests.spark.listeners import Seen
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark


def test_early_stopping_restores_the_best_epoch(spark: SparkSession, store_uri: str) -> None:
    # A learning rate of 1e4 on separable data overshoots after the first steps.
    data = separable(spark)
    estimator = linear(
        epochs=12,
        earlyStoppingPatience=2,
        validationFraction=0.3,
        loss="mse",
        optimizer=functools.partial(torch.optim.SGD, lr=0.9, momentum=0.9),
        storeUri=store_uri,
    )
    model = estimator.fit(data)
    losses = [row["val_loss"] for row in model.summary.history]
    assert model.summary.bestEpoch == int(np.argmin(losses))
    if len(losses) < 12:
        assert model.summary.stopped == "patience"
        assert len(losses) == model.summary.bestEpoch + 3


class Recorder(Callback):
    def __init__(self, path: str) -> None:
        self.path = path

    def on_epoch_end(self, state: TrainState) -> None:
        Path(f"{self.path}/{state.rank}-{state.epoch}").write_text(json.dumps(state.metrics["train_loss"]))
        if "torch._dynamo" in sys.modules:  # it takes longer to import than torch
            Path(f"{self.path}/compiler-{state.rank}").touch()
        if state.epoch == 1 and state.rank == 1:
            state.stop()


def test_callbacks_run_on_every_rank_and_one_may_stop_all(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    model = linear(epochs=5, callbacks=[Recorder(str(seen))], storeUri=store_uri).fit(separable(spark))
    assert sorted(os.listdir(seen)) == ["0-0", "0-1", "1-0", "1-1"]
    assert (seen / "0-1").read_text() == (seen / "1-1").read_text()
    assert model.summary.stopped == "callback"


class DieOnce(Callback):
    """Kills rank 1 in epoch 2, the first time it gets there."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def on_epoch_begin(self, state: TrainState) -> None:
        if state.epoch == 2 and state.rank == 1 and not os.path.exists(self.marker):
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_killed_and_resumed_is_never_interrupted(spark: SparkSession, store_uri: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "optimizer": "adam", "storeUri": store_uri}
    straight = linear(**settings).fit(separable(spark))
    marker = str(tmp_path / "died")
    seen = Seen()
    killed = linear(callbacks=[DieOnce(marker)], maxRestarts=1, listeners=[seen], **settings)
    resumed = killed.fit(separable(spark))
    assert os.path.exists(marker)
    assert [(event.generation, event.world_size) for event in seen.of(GenerationStarted)] == [(0, 2), (1, 2)]
    (lost,) = seen.of(RankLost)
    assert (lost.generation, lost.rank, lost.kind) == (0, 1, "signal")
    told = [event.epoch for event in seen.of(EpochEnded)]
    # It died while the end of epoch 1 was being written, or after that.
    assert told in ([0, 1, 2, 3], [0, 1, 1, 2, 3])
    committed = {event.epoch for event in seen.of(CheckpointCommitted)}
    # Rank 0 ends with rank 1, maybe before it has said that the checkpoint is there: then nothing is trained again.
    assert committed == {1, 2, 3, 4} or (committed, told) == ({1, 3, 4}, [0, 1, 2, 3])
    assert len(resumed.summary.history) == 4
    for name, tensor in straight.module().state_dict().items():
        torch.testing.assert_close(resumed.module().state_dict()[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_fits_leak_nothing(spark: SparkSession, tmp_path: Path, nothing_left_behind: None) -> None:
    store = tmp_path / "s"
    data = separable(spark)
    models = [linear(epochs=1, storeUri=store.as_uri()).fit(data) for _ in range(20)]
    assert len(os.listdir(store / "datasets")) == 1, "the same plan is written once"
    del data
    gc.collect()
    left = [path.relative_to(store).parts for path in store.rglob("*") if path.is_file()]
    assert {parts[0] for parts in left} == {"runs"}
    assert len(left) == 2 * len(models), "weights and manifest of each model, and nothing else"
