"""From what ranks and the launcher report to the listeners of a fit, on the driver.

A report is plain data, a dict with the key "event", and `event_of` is the only place that makes events of it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hvdspark.events import (
    CheckpointCommitted,
    EpochEnded,
    FitEnded,
    FitEvent,
    FitFailed,
    FitListener,
    FitStarted,
    GenerationStarted,
    RankLost,
    SlotsAwaited,
    StepsDone,
    Straggler,
    TablesRead,
    Warned,
)

logger = logging.getLogger(__name__)

Report = Mapping[str, Any]


class FanOut:
    """Hands the events of one fit to its listeners, in their order, one event at a time."""

    def __init__(self, run_id: str, listeners: Sequence[FitListener]) -> None:
        self._run_id, self._listeners = run_id, tuple(listeners)
        self._warned: set[str] = set()
        self._over = False
        self._lock = threading.RLock()  # a listener's method may be where an event is made

    @contextlib.contextmanager
    def fit(self, started: FitStarted) -> Iterator[None]:
        """Emit that a fit has started and, where the context is left by an exception, that it failed.

        That it ended well is for the caller to say, who has the result.
        """
        try:
            self.emit(started)
            yield
        except BaseException as error:
            self.emit(FitFailed(error))
            raise

    def emit(self, event: FitEvent) -> None:
        """Tell every listener; never fails. The event gets the run's id; what comes after the last one is dropped."""
        event = replace(event, run_id=self._run_id)
        with self._lock:
            if self._over:
                return  # a report that was kept waiting by a slow listener
            self._over = isinstance(event, FitEnded | FitFailed)
            for listener in self._listeners:
                try:
                    listener.on_event(event)
                except Exception:
                    names = type(listener).__name__, type(event).__name__
                    logger.warning("%s failed in %s; the fit goes on", *names, exc_info=True)

    def warn(self, messages: Iterable[str]) -> tuple[str, ...]:
        """Log warnings and tell every listener of them, of each once; returns all of them."""
        messages = tuple(messages)
        with self._lock:
            for message in messages:
                if message not in self._warned:  # ranks report what is in their result, too
                    self._warned.add(message)
                    logger.warning("%s", message)
                    self.emit(Warned(message))
        return messages

    def report(self, report: Report) -> None:
        """Take in what a rank or the launcher reports; what is no event of a fit is dropped."""
        match event_of(report):
            case Warned(message):
                self.warn([message])
            case FitEvent() as event:
                self.emit(event)


def event_of(report: Report) -> FitEvent | None:
    """The event that a report is about; None for what is none. Pure.

    Reports, by their "event" (a rank adds "rank" to each):
        "progress": epoch, epochs, step, steps, rows, rows_per_s, loss and, optionally, seconds (by phase).
        "epoch": the row of the history.
        "checkpoint": epoch, path and, optionally, stalled_s, bytes, seconds.
        "tables_read": bytes, moved_bytes.
        "waiting": slots, free, total, ahead, waited_s.
        "generation": generation, world_size and, of one that is not the first, restart and cause.
        "straggler": epoch, late (the rank), seconds, others and, optionally, step.
        "rank_lost": generation, lost (rank or None), host, kind, cause and, optionally, ago_s.
        "warning": text.

    Raises:
        KeyError: a value is missing.
    """
    kind = report.get("event")
    if kind == "progress":
        names = ("epoch", "epochs", "step", "steps", "rows", "rows_per_s", "loss")
        return StepsDone(**{name: report[name] for name in names}, seconds=dict(report.get("seconds", {})))
    if kind == "epoch":
        row = {name: value for name, value in report.items() if name not in ("event", "rank")}
        return EpochEnded(row["epoch"], row)
    if kind == "checkpoint":
        cost = {name: report[name] for name in ("stalled_s", "bytes", "seconds") if name in report}
        return CheckpointCommitted(report["epoch"], report["path"], **cost)
    if kind == "tables_read":
        return TablesRead(report["bytes"], report["moved_bytes"])
    if kind == "waiting":
        return SlotsAwaited(**{name: report[name] for name in ("slots", "free", "total", "ahead", "waited_s")})
    if kind == "generation":
        known = report["generation"], report["world_size"]
        return GenerationStarted(*known, report.get("restart", ""), report.get("cause", ""))
    if kind == "straggler":
        return Straggler(report["epoch"], report["late"], report["seconds"], report["others"], report.get("step"))
    if kind == "rank_lost":
        lost = {name: report[name] for name in ("generation", "host", "kind", "cause")}
        return RankLost(rank=report["lost"], ago_s=report.get("ago_s", 0.0), **lost)
    return Warned(report["text"]) if kind == "warning" else None
