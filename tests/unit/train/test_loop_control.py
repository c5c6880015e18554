"""How a run ends: patience, callbacks, divergence, errors."""

from __future__ import annotations

import contextlib
import errno
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact.weights import load_weights
from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.errors import ConfigurationError, DataError, SchemaError, TrainingDivergedError
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.loop import train
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import At, ClickNet, SetRate, click_program, largest_difference, train_on_threads, weights_of


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


class Trace(Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_begin(self, state: TrainState) -> None:
        self.calls.append(f"train_begin rank {state.rank} of {state.size}")

    def on_epoch_begin(self, state: TrainState) -> None:
        self.calls.append(f"epoch_begin {state.epoch}")

    def on_batch_end(self, state: TrainState) -> None:
        self.calls.append(f"batch_end {state.step}/{state.steps}")

    def on_epoch_end(self, state: TrainState) -> None:
        self.calls.append(f"epoch_end {state.metrics['epoch']} {len(state.history)}")
        self.weights.append({name: tensor.clone() for name, tensor in state.module.state_dict().items()})

    def on_train_end(self, state: TrainState) -> None:
        self.calls.append("train_end")


def test_callbacks_run_at_their_points(store: Store) -> None:
    traces = [Trace(), Trace()]
    spec = train_spec(store, write_dataset(store, click_columns(20)), epochs=2)
    unused = iter(traces)
    train_on_threads(spec, lambda: click_program(callbacks=[next(unused)]), 2)
    for rank, trace in enumerate(traces):
        assert trace.calls == [
            f"train_begin rank {rank} of 2",
            "epoch_begin 0",
            "batch_end 1/2",
            "batch_end 2/2",
            "epoch_end 0 1",
            "epoch_begin 1",
            "batch_end 1/2",
            "batch_end 2/2",
            "epoch_end 1 2",
            "train_end",
        ]


def test_one_rank_can_stop_all(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(20)), epochs=9)
    _, results = train_on_threads(spec, lambda: click_program(callbacks=[At(1, 2, TrainState.stop)]), 3)
    assert [result.epochs_run for result in results] == [2, 2, 2]
    assert results[0].stopped == "callback"


def test_an_exception_in_a_callback_fails_the_run(store: Store) -> None:
    def fail(state: TrainState) -> None:
        raise KeyError("mine")

    spec = train_spec(store, write_dataset(store, click_columns(20)))
    with pytest.raises(KeyError, match="mine"):
        train_on_threads(spec, lambda: click_program(callbacks=[At(0, 1, fail)]), 2)


def test_patience_stops_and_the_best_epochs_weights_are_the_result(store: Store) -> None:
    columns = click_columns(64)
    spec = train_spec(store, write_dataset(store, columns, columns), epochs=9, patience=2)
    trace = Trace()
    callbacks = [[SetRate([0.02, 0.02, 5.0, 5.0, 5.0]), trace], [SetRate([0.02, 0.02, 5.0, 5.0, 5.0])]]
    programs, results = train_on_threads(spec, lambda: click_program(callbacks=callbacks.pop(0)), 2)
    losses = [row["val_loss"] for row in results[0].history]
    assert len(losses) == 4
    assert losses[1] < losses[0] < losses[2]
    assert (results[0].best_epoch, results[0].stopped) == (1, "patience")
    for program in programs:
        assert largest_difference(weights_of(program), trace.weights[1]) == 0
    module = ClickNet()
    load_weights(store, results[0].model_path, module)
    assert largest_difference(dict(module.state_dict()), trace.weights[1]) == 0
    assert store.list("runs/run-1/checkpoints") == ["epoch-00001", "epoch-00002", "epoch-00003"]


@pytest.mark.parametrize(
    ("rates", "lost", "is_told"),
    [
        ([0.02, 0.02, 5.0], 1, True),  # the one before it is kept
        ([0.02, 5.0, 5.0, 0.01], 0, True),  # nothing is kept yet: a later one
        ([0.02, 0.02, 0.02, 5.0], 1, False),  # a better one comes
        ([0.02, 0.02, 0.02], 2, False),  # the last one, whose weights are there
    ],
)
def test_where_the_best_epoch_could_not_be_kept_the_model_is_the_best_that_was(
    store: Store, monkeypatch: pytest.MonkeyPatch, rates: list[float], lost: int, is_told: bool
) -> None:
    write = Store.open_write

    @contextlib.contextmanager
    def full(self: Store, path: str, **options: Any) -> Iterator[BinaryIO]:
        if f"checkpoints/epoch-{lost:05d}/" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        with write(self, path, **options) as file:
            yield file

    monkeypatch.setattr(Store, "open_write", full)
    columns, trace = click_columns(64), Trace()
    spec = train_spec(store, write_dataset(store, columns, columns), epochs=len(rates))
    callbacks = [[SetRate(rates), trace], [SetRate(rates)]]
    programs, results = train_on_threads(spec, lambda: click_program(callbacks=callbacks.pop(0)), 2)
    losses = [row["val_loss"] for row in results[0].history]
    there = [epoch for epoch in range(len(rates)) if epoch != lost or epoch == len(rates) - 1]
    best = min(there, key=losses.__getitem__)
    for program, result in zip(programs, results, strict=True):
        assert result.best_epoch == best
        assert largest_difference(weights_of(program), trace.weights[best]) == 0
    said = " ".join(results[0].warnings)
    assert "could not be written, and training goes on without it" in said
    assert (f"the weights of epoch {lost}, the best so far, are lost" in said) == is_told


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_where_the_best_epoch_can_no_longer_be_read_the_model_is_the_best_that_can(
    store: Store, damage: Callable[[Path], None]
) -> None:
    def harm(state: TrainState) -> None:
        folder = store.local_path("runs")
        assert folder is not None
        (file,) = folder.rglob("epoch-00000/weights.safetensors")
        damage(file)

    rates = [0.02, 5.0, 5.0, 5.0]
    columns, trace = click_columns(64), Trace()
    spec = train_spec(store, write_dataset(store, columns, columns), epochs=len(rates))
    callbacks = [[SetRate(rates), trace, At(3, 0, harm)], [SetRate(rates)]]
    programs, results = train_on_threads(spec, lambda: click_program(callbacks=callbacks.pop(0)), 2)
    losses = [row["val_loss"] for row in results[0].history]
    assert min(losses) == losses[0], "of the epochs 0, 2 and 3 there are checkpoints"
    best = min([2, 3], key=losses.__getitem__)
    for program, result in zip(programs, results, strict=True):
        assert result.best_epoch == best
        assert largest_difference(weights_of(program), trace.weights[best]) == 0
    assert "the weights of epoch 0, the best, can no longer be read" in " ".join(results[0].warnings)


def test_without_validation_the_last_epoch_is_the_result(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(64)), epochs=2)
    _, (result,) = train_on_threads(spec, lambda: click_program(callbacks=[SetRate([0.02, 5.0])]), 1)
    assert result.history[1]["train_loss"] > result.history[0]["train_loss"]
    assert result.best_epoch == 1


def test_a_store_that_cannot_be_written_is_an_error_on_all_ranks(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(40)))
    folder = store.local_path("runs")
    assert folder is not None
    folder.write_text("a file where a directory should be")
    assert errors_by_rank(spec, 2) == ["StoreError", "CheckpointError"]


def errors_by_rank(spec: Any, size: int, **changes: Any) -> list[str]:
    """Names of what `train` raises on each rank; fails if a rank is left waiting for the others."""

    def body(collective: ThreadedCollective) -> str:
        try:
            train(spec, click_program(**changes), collective, "cpu", lambda event: None)
        except threading.BrokenBarrierError:
            return "left waiting"
        except Exception as error:
            return type(error).__name__
        return "nothing"

    return run_threaded(size, body, timeout_s=10)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_in_the_features_of_one_rank_stops_all_at_that_step(store: Store, value: float, accumulation: int) -> None:
    columns = click_columns(64)
    columns["dense"][16 + 13, 1] = value  # the second batch's last rows are the last rank's
    spec = train_spec(store, write_dataset(store, columns), accumulation_steps=accumulation)
    messages: list[str] = []

    def body(collective: ThreadedCollective) -> dict[str, Tensor]:
        program = click_program()
        with pytest.raises(TrainingDivergedError) as caught:
            train(spec, program, collective, "cpu", lambda event: None)
        messages.append(str(caught.value))
        return weights_of(program)

    weights = run_threaded(3, body, timeout_s=10)
    assert len(set(messages)) == 1
    assert "rank 2, epoch 0, step 1" in messages[0]
    assert "in the columns dense:" in messages[0]
    assert (
        "beyond the float32 range (3.4e38)" in messages[0]
    ), "1e300 has become an infinity that the data does not show"
    assert all(torch.isfinite(tensor).all() for tensor in weights[0].values())
    assert store.list("runs/run-1/checkpoints") == []


def test_nan_in_a_label_names_the_label(store: Store) -> None:
    columns = click_columns(64)
    columns["label"][3] = math.nan
    with pytest.raises(TrainingDivergedError, match="in the columns label:"):
        train_on_threads(train_spec(store, write_dataset(store, columns)), lambda: click_program(loss="mse"), 2)


def test_a_diverging_learning_rate_is_named(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(64)), learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match=r"lower learning_rate \(now 1e\+30\)"):
        train_on_threads(spec, lambda: click_program(optimizer="sgd", loss=square), 2)


def square(output: Tensor, label: Tensor) -> Tensor:
    return (output - label) ** 2


class BadGradient(nn.Module):
    """A finite loss whose gradient is not: the square root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))

    def forward(self, dense: Tensor) -> Tensor:
        return (dense * self.scale).sum(dim=1).abs().sqrt()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_is_found_before_the_update(store: Store, clip: float | None) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(64)), features=("dense",), gradient_clip_norm=clip)
    programs = [click_program(module=BadGradient(), loss="mse") for _ in range(2)]
    with pytest.raises(TrainingDivergedError, match="gradient became NaN"):
        train_on_threads(spec, lambda: programs.pop(0), 2)


def test_weights_that_became_nan_in_the_last_step_are_never_saved(store: Store) -> None:
    class Poison(Callback):
        def on_batch_end(self, state: TrainState) -> None:
            if state.step == state.steps:
                with torch.no_grad():
                    next(state.module.parameters())[0] = math.nan

    spec = train_spec(store, write_dataset(store, click_columns(64)))
    assert errors_by_rank(spec, 2, callbacks=[Poison()]) == ["TrainingDivergedError"] * 2
    assert store.list("runs/run-1/checkpoints") == []


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_unusable_weights_are_an_error_on_all_ranks(store: Store, value: float) -> None:
    columns = click_columns(64, weighted=True)
    columns["weight"][17] = value
    spec = train_spec(store, write_dataset(store, columns))
    assert errors_by_rank(spec, 3) == ["DataError"] * 3


def test_no_weight_at_all_is_an_error_on_all_ranks(store: Store) -> None:
    columns = click_columns(64, weighted=True)
    columns["weight"][:] = 0
    spec = train_spec(store, write_dataset(store, columns))
    assert errors_by_rank(spec, 2) == ["DataError"] * 2


def test_unfreezing_during_training_is_refused_on_all_ranks(store: Store) -> None:
    class Unfreeze(Callback):
        def on_epoch_begin(self, state: TrainState) -> None:
            module: Any = state.module
            module.out.bias.requires_grad_(False)

    spec = train_spec(store, write_dataset(store, click_columns(64)))
    assert errors_by_rank(spec, 2, callbacks=[Unfreeze()]) == ["ConfigurationError"] * 2


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"features": ("dense", "age")}, SchemaError, "column not found.*'age'"),
        ({"weight": "w"}, SchemaError, "'w'"),
        ({"features": ()}, ConfigurationError, "at least one feature"),
        ({"epochs": 0}, ConfigurationError, "epochs must be at least 1: 0"),
        ({"batch_size": 0}, ConfigurationError, "batch_size must be at least 1: 0"),
        ({"accumulation_steps": 0}, ConfigurationError, "accumulation_steps"),
        ({"compression": "int8"}, ConfigurationError, "unknown compression: 'int8'"),
        ({"gradient_clip_norm": 0.0}, ConfigurationError, "gradient_clip_norm must be above 0: 0.0"),
        ({"precision": "fp8"}, ConfigurationError, "unknown precision"),
        ({"metrics": ("f1",)}, ConfigurationError, "unknown metric: 'f1'"),
        ({"schedule": "exponential"}, ConfigurationError, "unknown schedule"),
        ({"schedule_args": {"gamma": 0.1}}, ConfigurationError, "arguments without a schedule"),
        ({"patience": 2}, ConfigurationError, "no validation rows"),
    ],
)
def test_what_makes_no_sense_is_refused_before_training(
    store: Store, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(20)), **changes)
    with pytest.raises(error, match=words):
        train(spec, click_program(), LocalCollective(), "cpu", lambda event: None)
    assert store.list("runs") == []


def test_no_rows_are_an_error(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(0)))
    with pytest.raises(DataError, match="no training rows"):
        train(spec, click_program(), LocalCollective(), "cpu", lambda event: None)


def test_a_loss_without_gradient_is_refused(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(20)))
    program = click_program(loss=lambda output, label: (output.detach() - label) ** 2)
    with pytest.raises(ConfigurationError, match="does not depend on any trained parameter"):
        train(spec, program, LocalCollective(), "cpu", lambda event: None)


def test_validation_rows_of_one_class_warn_and_train_on(store: Store) -> None:
    columns = click_columns(40)
    validation = {**columns, "label": np.ones(40, np.float32)}
    spec = train_spec(store, write_dataset(store, columns, validation), epochs=2, metrics=("auc",), monitor="val_auc")
    _, (result, _) = train_on_threads(spec, click_program, 2)
    assert math.isnan(result.history[0]["val_auc"])
    assert "one class" in result.history[0]["warnings"]
    assert result.warnings == (
        "val_auc: AUC is not defined: the validation rows are all of one class (first in epoch 0)",
    )
    assert result.best_epoch == 1


def test_the_driver_hears_of_progress_and_epochs(store: Store) -> None:
    events: list[dict[str, Any]] = []
    spec = train_spec(store, write_dataset(store, click_columns(40)), epochs=2)
    _, (result, _) = train_on_threads(spec, click_program, 2, events=events)
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [{"event": "epoch", **row} for row in result.history] == epochs
    first = events[0]
    assert (first["event"], first["epochs"], first["step"], first["steps"], first["rows"]) == ("progress", 2, 1, 3, 16)
    assert math.isfinite(first["loss"])
