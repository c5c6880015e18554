"""User code that runs inside the training loop, on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.trust import Inert


@dataclass
class TrainState:
    """What a callback may look at. The same object through the whole run.

    Attributes:
        rank, size: this rank and the number of ranks.
        module: the rank's live module; changing it on one rank only makes the ranks disagree.
        optimizer: the rank's live optimizer; it computes on gradients that are already summed over the ranks.
        epoch, epochs: current epoch (from 0) and how many there will be at most.
        step, steps: global batches done in this epoch, and in a whole epoch.
        metrics: the last complete epoch's history row, {} before there is one; equal on all ranks.
        history: all complete epochs' rows.
        warnings: sentences that end up in the result.
        stop_requested: whether `stop` was called on this rank.
    """

    rank: int
    size: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: int
    epoch: int = 0
    step: int = 0
    steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stop_requested: bool = False

    def stop(self) -> None:
        """Ask for the end of training. One rank is enough; all ranks stop together after the current epoch."""
        self.stop_requested = True


class Callback(Inert):
    """Base class: override what you need. An exception in a callback fails the run.

    The methods run on every rank at the same points, so a callback may use collectives if all ranks do. Calling a
    module with sharded embedding tables is one: on one rank alone, it would wait for the others. A callback keeps no
    state across a relaunch after a lost executor: the resumed ranks start with fresh copies.
    """

    def on_train_begin(self, state: TrainState) -> None:
        """Before the first epoch (again after a resume)."""

    def on_epoch_begin(self, state: TrainState) -> None:
        """Before the first batch of an epoch (or, after a resume in the middle of one, of the rest of it)."""

    def on_batch_end(self, state: TrainState) -> None:
        """After each global batch."""

    def on_epoch_end(self, state: TrainState) -> None:
        """After validation, before the checkpoint; `state.metrics` is the epoch's row."""

    def on_train_end(self, state: TrainState) -> None:
        """After the best epoch's weights are restored and written."""


class CallbackList(Callback):
    """Several callbacks as one, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_train_begin(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_train_begin(state)

    def on_epoch_begin(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_epoch_begin(state)

    def on_batch_end(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_batch_end(state)

    def on_epoch_end(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_epoch_end(state)

    def on_train_end(self, state: TrainState) -> None:
        for callback in self._callbacks:
            callback.on_train_end(state)
