"""Small modules for training tests, and one call that trains them on threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hvdspark.collectives import Collective, ThreadedCollective, run_threaded
from hvdspark.specs import TrainSpec
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.loop import train
from hvdspark.train.program import Program, TrainResult
from hvdspark.train.run import Run
from hvdspark.train.trainer import Trainer


class ClickNet(nn.Module):
    """dense [rows, 3] and id [rows] -> logit [rows, 1]; the same initial weights each time it is made."""

    def __init__(self, *, sparse: bool = False, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding = nn.Embedding(11, 4, sparse=sparse)
            self.hidden = nn.Linear(7, 8)
            self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
            self.drop = nn.Dropout(dropout)
            self.out = nn.Linear(8, 1)

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        hidden = self.hidden(torch.cat([dense, self.embedding(id)], dim=1))
        return self.out(self.drop(torch.tanh(self.norm(hidden))))


class SetRate(Callback):
    """A rate for each epoch, to make epochs better or worse at will."""

    def __init__(self, rates: list[float]) -> None:
        self.rates = rates

    def on_epoch_begin(self, state: TrainState) -> None:
        state.optimizer.param_groups[0]["lr"] = self.rates[state.epoch]


class At(Callback):
    """Does something once, at one point of the run on one rank."""

    def __init__(self, epoch: int, rank: int, action: Any) -> None:
        self.epoch, self.rank, self.action = epoch, rank, action

    def on_epoch_end(self, state: TrainState) -> None:
        if (state.epoch, state.rank) == (self.epoch, self.rank):
            self.action(state)


def click_program(**changes: Any) -> Program:
    """A program of its own for each rank; `ClickNet` with Adam and the logistic loss unless changed."""
    return Program(**{"module": ClickNet(), "loss": "bce_with_logits", "optimizer": "adam", **changes})


def train_on_threads(
    spec: TrainSpec,
    make: Callable[[], Program],
    size: int,
    *,
    generation: int = 0,
    events: list[dict[str, Any]] | None = None,
    device: str = "cpu",
) -> tuple[list[Program], list[TrainResult]]:
    """Train one program for each rank; programs and results by rank. `events` collects what is reported."""
    programs = [make() for _ in range(size)]
    report = events.append if events is not None else (lambda event: None)

    def on_rank(collective: ThreadedCollective) -> TrainResult:
        return train(spec, programs[collective.rank], collective, device, report, generation)

    return programs, run_threaded(size, on_rank, timeout_s=20)


def train_to(
    place: tuple[int, int],
    spec: TrainSpec,
    program: Program,
    collective: Collective,
    generation: int = 0,
    device: str = "cpu",
) -> None:
    """Collective. What `train` does, up to a checkpoint after that many (epochs, global batches of the next)."""
    run = Run.of(spec, program, collective, device, lambda report: None, generation)
    trainer = Trainer(run)
    trainer.resume()
    trainer.callbacks.on_train_begin(trainer.state)
    while True:
        trainer.begin_epoch()
        with contextlib.closing(trainer.batches()) as batches:
            for batch, global_rows in batches:
                trainer.train_on(batch, global_rows)
                if run.progress.place == place:
                    trainer.save()
                    trainer.settle()
                    return
        trainer.end_epoch()
        trainer.save()


def weights_of(program: Program) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in program.module.state_dict().items()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
