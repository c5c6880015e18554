"""From the events of a fit to what is written of it."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hvdspark import __version__, versions
from hvdspark.events import (
    DatasetReady,
    EpochEnded,
    FitEnded,
    FitFailed,
    FitListener,
    FitStarted,
    GenerationStarted,
    GoodputMeasured,
    PhaseStarted,
    RankLost,
    StepsDone,
    Warned,
)
from hvdspark.specs import DatasetSpec
from hvdspark.tracking.entries import Curve, Entry, Metric, Rows, Status, Text, key, param, tag
from hvdspark.tracking.writer import Writer

_MIB = 2.0**20
_MOST_AT_INTERVAL = 1000  # points between epochs; then the interval doubles


class MlflowListener(FitListener):
    """Writes one fit. Every method hands entries to the writer and returns.

    Metrics of an epoch have its number as their step, those within one ("step/...") the number of global batches
    since the fit began. Of the latter at most one a second is kept, and half as many after every thousand.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, writer: Writer, clock: Callable[[], float] = time.time) -> None:
        self._writer, self._clock = writer, clock
        self._since: dict[str, float] = {}  # when what began
        self._took: dict[str, float] = {}  # seconds
        self._written: dict[tuple[int, str], float] = {}  # by epoch and metric
        self._points, self._last_point = 0, -math.inf
        self._warnings: list[str] = []
        self._generations = 0

    def on_fit_started(self, event: FitStarted) -> None:
        self._since["total"] = self._clock()
        self._writer.start()
        self._writer.put(_of_start(event))
        self._writer.put(self._point(f"memory/{name}", value, 0) for name, value in _memory(event))

    def on_phase_started(self, event: PhaseStarted) -> None:
        self._since[event.phase] = self._clock()

    def on_dataset_ready(self, event: DatasetReady) -> None:
        self._ends("materialize")
        self._writer.put(_of_dataset(event.dataset))

    def on_generation_started(self, event: GenerationStarted) -> None:
        self._generations = event.generation + 1
        self._writer.put([tag("hvdspark.generations", self._generations)])

    def on_steps_done(self, event: StepsDone) -> None:
        self._ends("launch")
        now = self._clock()
        if now - self._last_point < 2 ** (self._points // _MOST_AT_INTERVAL):
            return
        self._last_point, self._points = now, self._points + 1
        step = event.epoch * event.steps + event.step
        values = {"step/loss": event.loss, "step/rows_per_s": event.rows_per_s}
        self._writer.put(self._point(name, value, step, spare=True) for name, value in values.items())

    def on_epoch_ended(self, event: EpochEnded) -> None:
        self._ends("launch")
        self._writer.put(self._of_row(event.epoch, event.row))

    def on_rank_lost(self, event: RankLost) -> None:
        rank = "a rank" if event.rank is None else f"rank {event.rank}"
        text = f"generation {event.generation}: {rank} on {event.host} was lost ({event.kind}): {event.cause}"
        self._writer.put([tag("hvdspark.rank_lost", text)])

    def on_goodput_measured(self, event: GoodputMeasured) -> None:
        self._writer.put(self._of_goodput(event))

    def on_warned(self, event: Warned) -> None:
        self._warnings.append(event.message)
        self._writer.put([tag("hvdspark.warnings", "\n".join(self._warnings))])

    def on_fit_ended(self, event: FitEnded) -> None:
        for row in event.history:  # where executors cannot reach the driver, nothing was heard of epochs
            self._writer.put(self._of_row(row["epoch"], row))
        self._writer.put(self._of_end(event))
        self._finish("FINISHED", Curve("loss_curve.png", event.history, event.best_epoch))

    def on_fit_failed(self, event: FitFailed) -> None:
        self._writer.put([tag("hvdspark.error", f"{type(event.error).__name__}: {event.error}")])
        self._finish("FAILED" if isinstance(event.error, Exception) else "KILLED")

    def _of_end(self, event: FitEnded) -> Iterator[Entry]:
        yield tag("hvdspark.model_uri", event.model_uri)
        if event.stopped is not None:
            yield tag("hvdspark.stopped", event.stopped)
        yield self._point("best_epoch", event.best_epoch, 0)
        phases = [name for name in event.history[-1] if name.endswith("_seconds")]
        for name in phases:
            yield self._point(f"time/{name}", sum(row.get(name, 0.0) for row in event.history), 0)
        yield self._point("time/epochs_seconds", sum(row["seconds"] for row in event.history), 0)

    def _of_goodput(self, event: GoodputMeasured) -> Iterator[Metric]:
        yield self._point("goodput", event.goodput, 0)
        yield self._point("restarts", event.restarts, 0)
        yield self._point("time/input_stall_seconds", event.input_stall_s, 0)
        yield self._point("time/checkpoint_stand_still_seconds", event.checkpoint_s, 0)
        if event.tables_read_bytes:
            yield self._point("tables/read_bytes", event.tables_read_bytes, 0)
            yield self._point("tables/moved_bytes", event.tables_moved_bytes, 0)
        for number, seconds in enumerate(event.recoveries_s):
            yield self._point("time/recovery_seconds", seconds, number)
        for rank, times in event.stragglers.items():
            yield self._point(f"straggler/rank_{rank}", times, 0)

    def _finish(self, status: Status, *files: Entry) -> None:
        self._ends("total")
        self._writer.put(self._point(f"time/{name}_seconds", value, 0) for name, value in self._took.items())
        self._writer.put(files)
        self._writer.finish(status)

    def _ends(self, name: str) -> None:
        """Something that began has ended, unless it has before."""
        if name in self._since:
            self._took.setdefault(name, self._clock() - self._since[name])

    def _of_row(self, epoch: int, row: Mapping[str, Any]) -> Iterator[Metric]:
        """The numbers of an epoch that have not been written yet."""
        for name, value in row.items():
            if name == "epoch" or isinstance(value, bool) or not isinstance(value, numbers.Real):
                continue
            number = float(value)
            before = self._written.get((epoch, name))
            if before is None or not (before == number or (math.isnan(before) and math.isnan(number))):
                self._written[epoch, name] = number
                yield self._point(name, number, epoch)

    def _point(self, name: str, value: float, step: int, *, spare: bool = False) -> Metric:
        return Metric(key(name), float(value), step, int(self._clock() * 1000), spare)


def _of_start(event: FitStarted) -> Iterator[Entry]:
    for name, value in event.params.items():
        yield param(name, value)
    yield tag("hvdspark.estimator", event.estimator)
    yield tag("hvdspark.version", __version__)
    for package in ("Python", *versions.PACKAGES):
        yield tag(f"version.{package}", versions.installed(package) or "not installed")
    for number, plan in enumerate(event.plan):
        yield Text("sharding_plan.txt" if number == 0 else f"sharding_plan_{number}.txt", plan.text)


def _memory(event: FitStarted) -> Iterator[tuple[str, float]]:
    """What sharded tables take, in MiB, by name: MLflow writes every figure of a number of bytes."""
    if not event.plan:
        return
    by_rank = [sum(parts) for parts in zip(*(plan.rank_bytes for plan in event.plan), strict=True)]
    yield "tables_mib", sum(by_rank) / _MIB
    yield "tables_mib_of_largest_rank", max(by_rank) / _MIB
    if event.plan[0].available is not None:
        yield "available_mib_of_a_rank", event.plan[0].available / _MIB


def _of_dataset(data: DatasetSpec) -> Iterator[Entry]:
    for context, count in (("training", data.train_rows), ("validation", data.validation_rows)):
        if count:
            yield Rows(f"{context} rows", context, data.fingerprint, count, data.columns)
            yield tag(f"hvdspark.{context}_rows", count)
