"""A run that is launched again ends where it would have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvdspark.errors import CheckpointError
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.program import Program
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import At, ClickNet, SetRate, click_program, largest_difference, train_on_threads, weights_of


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_resumed_run_is_the_uninterrupted_one(store: Store, size: int, optimizer: str) -> None:
    columns = click_columns(100)
    dataset = write_dataset(store, columns, columns, group_rows=(30, 30, 40))
    given = optimizer if optimizer == "adam" else lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9)
    changes = {
        "epochs": 5,
        "shuffle": True,
        "schedule": "cosine",
        "accumulation_steps": 2,
        "metrics": ("auc",),
        "monitor": "val_auc",
        "patience": 4,
    }

    def program(*callbacks: Callback) -> Program:
        dropout = 0.2 if size == 1 else 0.0  # threads would share torch's generator
        return click_program(module=ClickNet(dropout=dropout), optimizer=given, callbacks=callbacks)

    whole, results = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, size)

    def lose_the_executor(state: TrainState) -> None:
        raise ConnectionError("executor lost")

    cut = train_spec(store, dataset, run_id="cut", **changes)
    with pytest.raises(ConnectionError):
        train_on_threads(cut, lambda: program(At(2, size - 1, lose_the_executor)), size)
    assert "epoch-00001" in store.list("runs/cut/checkpoints")
    resumed, resumed_results = train_on_threads(cut, program, size, generation=1)
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) < 1e-6
    assert resumed_results[0].best_epoch == results[0].best_epoch
    for row, expected in zip(resumed_results[0].history, results[0].history, strict=True):
        for key in ("epoch", "train_loss", "val_loss", "val_auc", "learning_rate"):
            assert row[key] == pytest.approx(expected[key], abs=1e-6), key


def test_a_run_that_was_over_is_only_finished(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(40)), epochs=9)
    first, results = train_on_threads(spec, lambda: click_program(callbacks=[At(1, 0, TrainState.stop)]), 2)
    again, again_results = train_on_threads(spec, click_program, 2, generation=1)
    assert largest_difference(weights_of(again[1]), weights_of(first[1])) == 0
    for row, expected in zip(again_results[0].history, results[0].history, strict=True):
        # The last checkpoint cannot know how long it took to write itself.
        assert {**row, "checkpoint_seconds": 0} == {**expected, "checkpoint_seconds": 0}
    assert again_results[0].outputs == results[0].outputs


def test_a_relaunch_without_a_complete_epoch_starts_over(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(40)))
    first, _ = train_on_threads(spec, click_program, 1)
    store.delete("runs/run-1")
    again, _ = train_on_threads(spec, click_program, 1, generation=1)
    assert largest_difference(weights_of(again[0]), weights_of(first[0])) == 0


def test_a_first_launch_forgets_what_lies_there(store: Store) -> None:
    dataset = write_dataset(store, click_columns(40))
    train_on_threads(train_spec(store, dataset, epochs=3), click_program, 1)

    def fail(state: TrainState) -> None:
        raise ConnectionError("executor lost")

    spec = train_spec(store, dataset, epochs=1)
    with pytest.raises(ConnectionError):
        train_on_threads(spec, lambda: click_program(callbacks=[At(0, 0, fail)]), 1)
    assert store.list("runs/run-1") == []
    _, (result,) = train_on_threads(spec, click_program, 1, generation=1)
    assert result.epochs_run == 1


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(store: Store) -> None:
    columns = click_columns(40)
    spec = train_spec(store, write_dataset(store, columns, columns), epochs=2)
    rates = SetRate([0.02, 5.0, 0.02])  # epoch 0 is the best and is kept beside epoch 1
    train_on_threads(spec, lambda: click_program(callbacks=[rates]), 2)
    path = store.local_path("runs/run-1/checkpoints/epoch-00001/optimizer.safetensors")
    assert path is not None
    path.write_bytes(b"")
    _, (result, _) = train_on_threads(spec, lambda: click_program(callbacks=[rates]), 2, generation=1)
    assert result.epochs_run == 2
    assert "passed over a damaged checkpoint" in result.warnings[0]
    path.write_bytes(b"")
    Path(str(store.local_path("runs/run-1/checkpoints/epoch-00000/weights.safetensors"))).unlink()
    with pytest.raises(CheckpointError, match="every checkpoint of the run is damaged"):
        train_on_threads(spec, click_program, 1, generation=2)
