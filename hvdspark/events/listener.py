"""Who is told of events."""

from __future__ import annotations

import re

from hvdspark.events.base import FitEvent
from hvdspark.events.of_fit import (
    DatasetReady,
    FitEnded,
    FitFailed,
    FitStarted,
    GoodputMeasured,
    PhaseStarted,
    Warned,
)
from hvdspark.events.of_ranks import GenerationStarted, RankLost, SlotsAwaited, Straggler
from hvdspark.events.of_training import CheckpointCommitted, EpochEnded, StepsDone, TablesRead


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
        """An epoch is trained and validated."""

    def on_checkpoint_committed(self, event: CheckpointCommitted) -> None:
        """A checkpoint is complete."""

    def on_tables_read(self, event: TablesRead) -> None:
        """The ranks have the rows of tables from a checkpoint."""

    def on_rank_lost(self, event: RankLost) -> None:
        """A rank died or was lost."""

    def on_straggler(self, event: Straggler) -> None:
        """The others wait for a rank."""

    def on_warned(self, event: Warned) -> None:
        """Something that the user should know."""

    def on_goodput_measured(self, event: GoodputMeasured) -> None:
        """Training has ended, and what it had of its time is known."""

    def on_fit_ended(self, event: FitEnded) -> None:
        """The model is in the store."""

    def on_fit_failed(self, event: FitFailed) -> None:
        """The fit ends with an error."""


def _method_of(kind: type[FitEvent]) -> str:
    """ "on_fit_started" of FitStarted."""
    return "on" + re.sub("([A-Z])", r"_\1", kind.__name__).lower()
