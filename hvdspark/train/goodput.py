"""What a fit had of its time, as a listener on the driver measures it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hvdspark.events import (
    EpochEnded,
    FitListener,
    GenerationStarted,
    GoodputMeasured,
    PhaseStarted,
    RankLost,
    StepsDone,
    Straggler,
    TablesRead,
)
from hvdspark.events.base import Row

# Phases of an epoch in which its weights change. What a rank waits for, checks or saves is not among them.
_USEFUL = ("forward_backward", "exchange_step")


class Goodput(FitListener):
    """Measures one fit.

    What is useful is taken from the history: the steps that are in the final weights. Those that were trained again
    after a rollback count once, as does nothing of a generation that left no checkpoint. What a driver before this one
    had trained of the run is in the history, and was in its time.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._launched_s: float | None = None
        # The first epoch that is heard of, and by phase the seconds in it that an earlier driver's ranks had had.
        self._began: tuple[int, Mapping[str, float]] | None = None
        self._lost_s: float | None = None  # when a rank was lost, until the next step
        self._generations = self._restarts = 0
        self._recoveries_s: list[float] = []
        self._tables_read = self._tables_moved = 0
        self._late: set[tuple[int, int]] = set()  # (rank, epoch)

    def on_phase_started(self, event: PhaseStarted) -> None:
        if event.phase == "launch":
            self._launched_s = self._clock()

    def on_generation_started(self, event: GenerationStarted) -> None:
        self._generations += 1
        self._restarts += event.restart == "failed"

    def on_rank_lost(self, event: RankLost) -> None:
        # The ranks of a generation that never did a step were lost first by an earlier one.
        if self._lost_s is None:
            self._lost_s = self._clock() - event.ago_s

    def on_steps_done(self, event: StepsDone) -> None:
        # Ranks tell of the first batch behind their start: later in an epoch, they have gone on with a checkpoint.
        self._began = self._began or (event.epoch, event.seconds if event.step > 1 else {})
        if self._lost_s is not None:
            self._recoveries_s.append(self._clock() - self._lost_s)
            self._lost_s = None

    def on_epoch_ended(self, event: EpochEnded) -> None:
        self._began = self._began or (event.epoch, {})

    def on_tables_read(self, event: TablesRead) -> None:
        self._tables_read += event.bytes
        self._tables_moved += event.moved_bytes

    def on_straggler(self, event: Straggler) -> None:
        self._late.add((event.rank, event.epoch))

    def measured(self, history: Sequence[Row]) -> GoodputMeasured:
        """What there is to say when training is over.

        Args:
            history: of the fit, complete.
        """
        wall_s = 0.0 if self._launched_s is None else self._clock() - self._launched_s
        useful_s = sum(self._seconds(history, phase) for phase in _USEFUL)
        return GoodputMeasured(
            goodput=min(1.0, useful_s / wall_s) if wall_s > 0 else 0.0,
            useful_s=useful_s,
            wall_s=wall_s,
            restarts=self._restarts,
            recoveries_s=tuple(self._recoveries_s),
            stragglers=dict(sorted(Counter(rank for rank, _ in self._late).items())),
            input_stall_s=self._seconds(history, "loading"),
            checkpoint_s=self._seconds(history, "checkpoint"),
            tables_read_bytes=self._tables_read,
            tables_moved_bytes=self._tables_moved,
        )

    def _seconds(self, history: Sequence[Row], phase: str) -> float:
        """Of a phase, in what this driver's ranks have trained of the history."""
        if not self._generations:
            return 0.0  # an earlier driver had finished the run
        first, earlier = self._began or (0, {})  # ranks that cannot reach the driver tell of nothing
        of_rows = sum(float(row.get(f"{phase}_seconds", 0.0)) for row in history if row["epoch"] >= first)
        return max(0.0, of_rows - earlier.get(phase, 0.0))


def as_plain(measured: GoodputMeasured) -> dict[str, Any]:
    """JSON-able: the values by name, ranks as text."""
    plain = asdict(measured)
    del plain["run_id"]
    return {**plain, "stragglers": {str(rank): times for rank, times in measured.stragglers.items()}}
