"""Fewer ranks, and more again, in the middle of training: the supervisor's generations, with threads as ranks."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.errors import RankFailedError
from hvdspark.launch import generations, restarts, room
from hvdspark.launch.line import Waiting
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import Launcher, LaunchSpec, Seat, Slots
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from hvdspark.launch.world_sizes import WorldSizes
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from tests.unit.train.datasets import train_spec, write_dataset
from tests.visits import Visits, one_for_each_row

# Of the second generation, more steps are left behind its wait than there are between two decision points.
ROWS, BATCH, EPOCHS = 128, 16, 6
STEPS = ROWS // BATCH
# An epoch's visits of a row are a digit of its number: 6 of them fit into float32 exactly.
BASE = 16.0
EXPECTED = -sum(BASE**-epoch for epoch in range(EPOCHS))
DIES_AT = (0, 6)


class RankDiedError(Exception):
    """A rank is gone."""


class Host(SameHostLauncher):
    """Ranks are threads. There are slots for two of them, for one when a rank has died, and for two again once a
    generation of one has written a checkpoint.
    """

    def __init__(self, spec: TrainSpec) -> None:
        self.spec, self.now = spec, 2
        self.events: list[dict[str, Any]] = []
        self.made: list[Program] = []

    @contextlib.contextmanager
    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> Iterator[Seat]:
        yield self

    def slots(self, running: int = 0) -> Slots | None:
        return Slots(self.now, self.now)

    def hold(self, ranks: int) -> None:
        """Nobody else wants them."""

    def hear(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "rank_lost":
            self.now = 1
        elif event["event"] == "checkpoint" and len(self.told("generation")) == 2:
            self.now = 2

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def generation(
        self,
        launcher: Launcher,
        spec: LaunchSpec,
        on_event: Callable[[dict[str, Any]], None],
        preemption: Preemption,
        *others: Any,
    ) -> list[int]:
        """In the place of `run_generation`."""
        asked = threading.Event()

        class Mind(Callback):
            """The first generation dies; the second waits, in epoch 2, until it is asked to make room."""

            def on_batch_end(self, state: TrainState) -> None:
                if spec.generation == 0 and (state.epoch, state.step) == DIES_AT and state.rank == 1:
                    raise RankDiedError
                if spec.generation == 1 and state.epoch == 2:
                    assert asked.wait(60)

        optimizer = functools.partial(torch.optim.SGD, lr=float(BATCH))
        self.made = [
            Program(module=Visits(ROWS), loss=one_for_each_row, optimizer=optimizer, callbacks=[Mind()])
            for _ in range(spec.world_size)
        ]

        def on_rank(collective: ThreadedCollective) -> int:
            program = self.made[collective.rank]
            train(
                self.spec,
                program,
                collective,
                "cpu",
                on_event,
                spec.generation,
                preempted=lambda: preemption.reason or "",
            )
            return spec.world_size

        try:
            with preemption.told_to(lambda reason: asked.set()):
                return run_threaded(spec.world_size, on_rank, timeout_s=60)
        except RankDiedError:
            raise RankFailedError(1, "here", "killed", kind="signal", step=DIES_AT[1] - 1) from None


def visits_spec(store: Store) -> TrainSpec:
    columns = {"id": np.arange(ROWS, dtype=np.int64), "label": np.zeros(ROWS, dtype=np.float32)}
    return train_spec(
        store,
        write_dataset(store, columns, group_rows=(50, 28, 50)),
        features=("id",),
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=True,
        learning_rate=float(BATCH),
        schedule="step",
        schedule_args={"step_size": STEPS, "gamma": 1 / BASE},
        checkpoint_interval_steps=4,
        monitor="train_loss",
    )


def test_every_row_of_every_epoch_is_trained_once_with_two_ranks_one_and_two(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_LOOK_EVERY_S", "_WATCH_EVERY_S", "GROW_AFTER_S"):
        monkeypatch.setattr(room, name, 0.02)
    monkeypatch.setattr(generations, "SETTLE_S", 0.1)
    monkeypatch.setattr(restarts, "PAUSE_S", 0.01)
    host = Host(visits_spec(Store(str(tmp_path))))
    monkeypatch.setattr(generations, "run_generation", host.generation)
    results = supervise(host, time.time, num_workers=2, min_workers=1, max_restarts=1, on_event=host.hear)
    assert results == [2, 2]
    started = host.told("generation")
    assert [event["world_size"] for event in started] == [2, 1, 2]
    assert [event.get("restart", "") for event in started] == ["", "failed", "resized"]
    assert "rank 1 on host here in step 5: killed" in started[1]["cause"]
    for program in host.made:
        table = program.module.state_dict()["table.weight"]
        assert torch.equal(table, torch.full_like(table, EXPECTED)), "each row is once in each digit"
