"""What happens in a fit, as frozen values, and who is told of it on the driver.

A fit emits events to its listeners: the progress that is shown, the log of a plan's memory, and what a user gives as
`listeners=[...]` are all `FitListener`s. Ranks and the launcher know no listeners: they report plain data, of which
`hvdspark.fan_out` makes events.

Reports of ranks are best effort: where executors cannot reach the driver (on Spark Connect, the client) there are
none. What must not be lost travels with the result: `FitEnded.history` is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hvdspark.specs import DatasetSpec

__all__ = [
    "CheckpointCommitted",
    "DatasetReady",
    "EpochEnded",
    "FitEnded",
    "FitEvent",
    "FitFailed",
    "FitListener",
    "FitStarted",
    "GenerationStarted",
    "PhaseStarted",
    "RankLost",
    "SlotsAwaited",
    "StepsDone",
    "Straggler",
    "TablesPlan",
    "Warned",
]

Row = Mapping[str, Any]
Phase = Literal["materialize", "launch"]


@dataclass(frozen=True)
class FitEvent:
    """Base class of all events.

    Attributes:
        run_id: which fit it is of, because fits of one listener may run side by side (CrossValidator); unique.
    """

    run_id: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class TablesPlan:
    """What each rank will hold of the sharded embedding tables of one collection.

    Attributes:
        tables: how many there are.
        rank_bytes: by rank, expected bytes of rows, optimizer state and buffers; unbounded tables grow beyond it.
        available: bytes that a rank may use, tables of other collections subtracted; None where nobody can say.
        setting: what limits them, e.g. "spark.executor.memoryOverhead"; "" where nobody can say.
        text: the plan as a table to print.
    """

    tables: int
    rank_bytes: tuple[int, ...]
    available: int | None
    setting: str
    text: str


@dataclass(frozen=True)
class FitStarted(FitEvent):
    """A fit has passed its checks, and nothing is written or started yet.

    Attributes:
        estimator: its uid.
        params: every Param that has a value, by name; `env` by its names only.
        features, labels: columns.
        weight: column, or None.
        world_size: ranks that are asked for.
        plan: of each collection of sharded tables.
    """

    estimator: str
    params: Mapping[str, Any]
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None
    world_size: int
    plan: tuple[TablesPlan, ...] = ()


@dataclass(frozen=True)
class PhaseStarted(FitEvent):
    """What the fit does until ranks report.

    Attributes:
        phase: "materialize" (rows are written), then "launch" (ranks start).
    """

    phase: Phase


@dataclass(frozen=True)
class DatasetReady(FitEvent):
    """The rows lie in the store, written now or by an earlier fit, and their footers are read.

    Attributes:
        dataset: columns, row groups, and where they are.
    """

    dataset: DatasetSpec


@dataclass(frozen=True)
class SlotsAwaited(FitEvent):
    """The ranks wait for task slots that other fits of this process or other jobs have, or that are gone with their
    executors; told within 5 seconds, then every 30 seconds.

    Attributes:
        slots: that the ranks need at once, at least.
        free: that nobody has, as far as is known.
        total: slots of the application; where executors were lost, those that are left for these ranks.
        ahead: fits and programs that run, or wait and came before.
        waited_s: seconds so far.
    """

    slots: int
    free: int
    total: int
    ahead: int
    waited_s: float


@dataclass(frozen=True)
class GenerationStarted(FitEvent):
    """The ranks are launched; once more after each failure that is worth it, and where more or fewer ranks go on.

    Attributes:
        generation: 0 for the first launch.
        world_size: ranks of this generation.
        restart: why there is another one: "failed", "preempted" (the platform wanted its slots back) or "resized"
            (there was room for more ranks); "" for the first.
        cause: how the one before ended, a sentence.
    """

    generation: int
    world_size: int
    restart: str = ""
    cause: str = ""


@dataclass(frozen=True)
class StepsDone(FitEvent):
    """Global batches of an epoch are done; at most four times a second, so not of every batch.

    Attributes:
        epoch: from 0.
        epochs: how many there will be at most.
        step: global batches done in this epoch.
        steps: global batches of an epoch.
        rows: training rows of all ranks in this epoch so far.
        rows_per_s: over this epoch so far.
        loss: of rank 0's rows of the last batch.
        seconds: wall seconds by phase in this epoch so far, as rank 0 saw them.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    rows: int
    rows_per_s: float
    loss: float
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochEnded(FitEvent):
    """An epoch is trained, validated and checkpointed.

    Attributes:
        epoch: from 0.
        row: its row of the history: "train_loss", "val_...", "learning_rate", "rows", "seconds", ...
    """

    epoch: int
    row: Row


@dataclass(frozen=True)
class CheckpointCommitted(FitEvent):
    """A checkpoint is complete: a later generation may start from it.

    Attributes:
        epoch: complete epochs that are in it.
        path: directory, relative to the store.
    """

    epoch: int
    path: str


@dataclass(frozen=True)
class RankLost(FitEvent):
    """A generation failed because a rank died or was lost, not by an error of its own.

    Attributes:
        generation: which one.
        rank: the first that failed; None where nobody can say.
        host: its host, or "unknown".
        kind: "signal", "executor_lost" or "peer_lost".
        cause: one sentence.
    """

    generation: int
    rank: int | None
    host: str
    kind: str
    cause: str


@dataclass(frozen=True)
class Straggler(FitEvent):
    """A rank was busy much longer than the others in an epoch: they wait for it in every step.

    Of models with sharded tables only slow loading is seen: while such a model computes, ranks wait for each other.

    Attributes:
        epoch: from 0.
        rank: the late one.
        seconds: that it loaded and computed in this epoch.
        others: seconds of the others, the median.
    """

    epoch: int
    rank: int
    seconds: float
    others: float


@dataclass(frozen=True)
class Warned(FitEvent):
    """Something that the user should know; also logged, and in `model.summary.warnings` if it came from the fit.

    Attributes:
        message: a sentence or more.
    """

    message: str


@dataclass(frozen=True)
class FitEnded(FitEvent):
    """The model is in the store. The last event of a fit that succeeded.

    Attributes:
        model_uri: the directory of the trained model.
        history: one row for each epoch, complete.
        best_epoch: whose weights the model has.
        stopped: why training ended before the last epoch: "patience", "callback" or None.
        warnings: all of them.
    """

    model_uri: str
    history: tuple[Row, ...]
    best_epoch: int
    stopped: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitFailed(FitEvent):
    """The fit ends with this error, KeyboardInterrupt included. The last event of a fit that failed."""

    error: BaseException


class FitListener:
    """Base class: override what you need.

    A fit that starts ends: after `on_fit_started` comes `on_fit_ended` or `on_fit_failed`, exactly once. What is
    refused before (a wrong Param or column) has no events. The methods are called on the driver, one at a time for each
    fit, in whatever thread has the news, and the fit waits for them: return soon. An exception is logged and changes
    nothing for the fit or the other listeners. One listener may serve several fits, also at the same time;
    `event.run_id` tells them apart.
    """

    def on_event(self, event: FitEvent) -> None:
        """Called with every event; calls the method of its kind, if it has one."""
        method = getattr(self, _method_of(type(event)), None)
        if method is not None:
            method(event)

    def on_fit_started(self, event: FitStarted) -> None:
        """The checks have passed; nothing is written yet."""

    def on_phase_started(self, event: PhaseStarted) -> None:
        """Rows are written, or ranks are started."""

    def on_dataset_ready(self, event: DatasetReady) -> None:
        """The rows lie in the store."""

    def on_slots_awaited(self, event: SlotsAwaited) -> None:
        """The ranks wait for slots."""

    def on_generation_started(self, event: GenerationStarted) -> None:
        """The ranks are launched, or launched again."""

    def on_steps_done(self, event: StepsDone) -> None:
        """Some global batches are done."""

    def on_epoch_ended(self, event: EpochEnded) -> None:
        """An epoch is trained, validated and checkpointed."""

    def on_checkpoint_committed(self, event: CheckpointCommitted) -> None:
        """A checkpoint is complete."""

    def on_rank_lost(self, event: RankLost) -> None:
        """A rank died or was lost."""

    def on_straggler(self, event: Straggler) -> None:
        """The others wait for a rank."""

    def on_warned(self, event: Warned) -> None:
        """Something that the user should know."""

    def on_fit_ended(self, event: FitEnded) -> None:
        """The model is in the store."""

    def on_fit_failed(self, event: FitFailed) -> None:
        """The fit ends with an error."""


def _method_of(kind: type[FitEvent]) -> str:
    """ "on_fit_started" of FitStarted."""
    return "on" + re.sub("([A-Z])", r"_\1", kind.__name__).lower()
