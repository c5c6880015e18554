"""Models whose weights say which rows they were trained on, and how often, in each epoch.

A row's loss is that of the model minus the row's own entry in a table of counts, [rows, epochs]. The gradient of that
entry is -1 over the rows of an optimizer step, and its plain SGD has that number as its learning rate: it grows by
exactly 1 with each time that the row is trained in that epoch. A row that was lost or trained twice stays visible in
the final weights, however often the fit was interrupted in between.
"""

from __future__ import annotations

import functools
import os
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hvdspark
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.specs import DatasetSpec, TrainSpec
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.program import Program
from tests.chaos.drawn import Fit
from tests.unit.train.datasets import train_spec, write_dataset

RECORD = struct.Struct("<dii")  # when (CLOCK_MONOTONIC, s), epoch, global batches done in it
_CATEGORIES = 23
_LEARNING_RATE = 0.05


class Counted(nn.Module):
    """dense [rows, 3], id [rows] (a number of its own for each row) -> [rows, 2]: a logit, and the row's count."""

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self.epoch = 0
        with torch.random.fork_rng():
            torch.manual_seed(fit.seed)
            self.hidden = nn.Linear(7, 8)
            self.norm = nn.BatchNorm1d(8) if fit.random_layers else nn.Identity()
            self.drop = nn.Dropout(0.2 if fit.random_layers else 0.0)
            self.out = nn.Linear(8, 1)

    def looked_up(self, id: Tensor) -> tuple[Tensor, Tensor]:
        """Of these rows, the vectors of their categories, [rows, 4], and their counts, [rows, epochs]."""
        raise NotImplementedError

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        vectors, counts = self.looked_up(id)
        hidden = torch.tanh(self.norm(self.hidden(torch.cat([dense, vectors], dim=1))))
        # Of earlier epochs, so that the loss of each is smaller than that of the one before: the last is the best.
        before = counts[:, : self.epoch].sum(dim=1).detach()
        return torch.stack([self.out(self.drop(hidden)).squeeze(1), counts[:, self.epoch] + before], dim=1)


class DenseCounted(Counted):
    def __init__(self, fit: Fit) -> None:
        super().__init__(fit)
        with torch.random.fork_rng():
            torch.manual_seed(fit.seed + 1)
            self.vectors = nn.Embedding(_CATEGORIES, 4)
        self.seen = nn.Embedding.from_pretrained(torch.zeros(fit.rows, fit.epochs), freeze=False)

    def looked_up(self, id: Tensor) -> tuple[Tensor, Tensor]:
        return self.vectors(id % _CATEGORIES), self.seen(id)


class ShardedCounted(Counted):
    def __init__(self, fit: Fit) -> None:
        super().__init__(fit)
        name = {"momentum": "sgd"}.get(fit.optimizer, fit.optimizer)
        counting = SparseOptimizer("sgd", float(fit.batch_size * fit.accumulation))
        self.tables = ShardedEmbeddingCollection(
            [
                TableConfig("vectors", 4, optimizer=SparseOptimizer(name, _LEARNING_RATE), placement="row"),
                TableConfig("seen", fit.epochs, optimizer=counting, init=Initialization("zeros")),
            ],
            {"category": "vectors", "row": "seen"},
            seed=fit.seed,
        )

    def looked_up(self, id: Tensor) -> tuple[Tensor, Tensor]:
        found = self.tables({"category": id % _CATEGORIES, "row": id})
        return found["category"], found["row"]


class CountingAdam(torch.optim.Adam):
    """Adam on all parameters but the last group's, which counts."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        _step_and_count(self, functools.partial(super().step, closure))


class CountingAdagrad(torch.optim.Adagrad):
    """Adagrad on all parameters but the last group's, which counts."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        _step_and_count(self, functools.partial(super().step, closure))


@torch.no_grad()
def _step_and_count(optimizer: torch.optim.Optimizer, step: Callable[[], Any]) -> None:
    (counts,) = optimizer.param_groups[-1]["params"]
    before = counts.clone()
    step()
    counts.copy_(before - optimizer.param_groups[-1]["count_rate"] * counts.grad)


def _dense_optimizer(parameters: Iterable[nn.Parameter], kind: str, counted: tuple[int, int], rate: float) -> Any:
    parameters = list(parameters)
    others = [parameter for parameter in parameters if tuple(parameter.shape) != counted]
    counts = [parameter for parameter in parameters if tuple(parameter.shape) == counted]
    if not counts:
        named = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
        if kind in named:
            return named[kind](others, lr=_LEARNING_RATE)
        return torch.optim.SGD(others, lr=_LEARNING_RATE, momentum=0.9)
    if kind == "momentum":
        groups = [{"params": others, "momentum": 0.9}, {"params": counts, "lr": rate}]
        return torch.optim.SGD(groups, lr=_LEARNING_RATE)
    adaptive = {"adam": CountingAdam, "adagrad": CountingAdagrad}[kind]
    return adaptive([{"params": others}, {"params": counts, "count_rate": rate}], lr=_LEARNING_RATE)


def counted_loss(output: Tensor, label: Tensor) -> Tensor:
    """[rows]"""
    own = nn.functional.binary_cross_entropy_with_logits(output[:, 0], label.reshape(-1), reduction="none")
    return own - output[:, 1]


class Watched(Callback):
    """Tells the module its epoch, writes down when each step was done, and gives those time who want to interrupt it.

    Args:
        folder: where each rank of each generation writes `RECORD`s into a file of its own.
        pause_s: after each step.
    """

    def __init__(self, folder: str, pause_s: float) -> None:
        self._folder, self._pause_s = folder, pause_s

    def on_train_begin(self, state: TrainState) -> None:
        name = steps_file(hvdspark.context().generation, state.rank)
        self._file = os.open(Path(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def on_epoch_begin(self, state: TrainState) -> None:
        state.module.epoch = state.epoch  # type: ignore[assignment]

    def on_batch_end(self, state: TrainState) -> None:
        os.write(self._file, RECORD.pack(time.monotonic(), state.epoch, state.step))
        time.sleep(self._pause_s)


def steps_file(generation: int, rank: int) -> str:
    return f"steps-{generation:05d}-{rank}"


def module_of(fit: Fit) -> Counted:
    """The fit's module with its initial weights."""
    return {"dense": DenseCounted, "sharded": ShardedCounted}[fit.model](fit)


def program_of(fit: Fit, *callbacks: Callback) -> Program:
    """What each rank trains."""
    rate = float(fit.batch_size * fit.accumulation)
    optimizer = functools.partial(_dense_optimizer, kind=fit.optimizer, counted=(fit.rows, fit.epochs), rate=rate)
    return Program(module=module_of(fit), loss=counted_loss, optimizer=optimizer, callbacks=callbacks)


def write_rows(store: Store, fit: Fit) -> DatasetSpec:
    """The fit's data in the store."""
    generator = np.random.default_rng(fit.seed)
    dense = generator.standard_normal((fit.rows, 3)).astype(np.float32)
    ids = np.arange(fit.rows, dtype=np.int64)
    logit = dense @ np.array([1.5, -2.0, 0.5]) + np.where(ids % _CATEGORIES % 2 == 0, 1.0, -1.0)
    label = (logit + generator.logistic(size=fit.rows) > 0).astype(np.float32)
    columns = {"dense": dense, "id": ids, "label": label}
    cuts = np.sort(generator.choice(np.arange(1, fit.rows), fit.groups - 1, replace=False))
    group_rows = np.diff([0, *cuts, fit.rows]).tolist()
    return write_dataset(store, columns, columns if fit.validation else None, group_rows=group_rows)


def spec_of(fit: Fit, store: Store, data: DatasetSpec, run_id: str) -> TrainSpec:
    """Of the fit, as a run of this id."""
    return train_spec(
        store,
        data,
        run_id=run_id,
        batch_size=fit.batch_size,
        epochs=fit.epochs,
        seed=fit.seed,
        shuffle=fit.shuffle,
        shuffle_rows=64,
        accumulation_steps=fit.accumulation,
        checkpoint_interval_steps=fit.interval_steps,
        monitor="val_loss" if fit.validation else "train_loss",
    )
