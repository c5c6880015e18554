"""What a fit shows on the driver: a listener of its events.

On a terminal or in a notebook a bar; elsewhere, in the log of a job say, a line every 30 seconds, whether or not there
is something new: while rows are written, ranks start, or a long step or validation runs, nothing else would be heard.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from hvdspark.events import (
    EpochEnded,
    FitEnded,
    FitFailed,
    FitListener,
    FitStarted,
    GenerationStarted,
    PhaseStarted,
    SlotsAwaited,
    StepsDone,
)
from hvdspark.events.of_fit import Phase

logger = logging.getLogger(__name__)

_INTERVAL_S = 30.0
_DOING: dict[Phase, str] = {"materialize": "rows are written", "launch": "ranks start"}


def progress(monitor: str, environ: Mapping[str, str] = os.environ) -> FitListener:
    """A listener for one fit: a bar where somebody looks, else lines. HVDSPARK_PROGRESS=1 is always a bar, =0 nothing.

    Args:
        monitor: key of the metric to show beside the loss.
    """
    if wanted(environ) or environ.get("HVDSPARK_PROGRESS") == "0":
        return ProgressBar(wanted(environ), monitor)
    return ProgressLines(monitor)


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to draw a bar: on a terminal or in a notebook, unless HVDSPARK_PROGRESS=0 (=1 insists)."""
    choice = environ.get("HVDSPARK_PROGRESS", "")
    if choice in ("0", "1"):
        return choice == "1"
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class ProgressBar(FitListener):
    """One bar for a fit: global batches over all epochs, with rows/s, loss and the validation metric.

    It begins with the first batch. On a terminal Spark draws its own for the jobs before; as not every notebook shows
    these, and Spark may be told to draw none, there is a line every 30 seconds until then, and while ranks start again.

    Attributes:
        lines: what is said beside the bar.

    Args:
        clock: seconds.
    """

    def __init__(self, enabled: bool, monitor: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._enabled, self._monitor = enabled, monitor
        self._bar: Any = None
        self._steps = 0
        self._notes: dict[str, str] = {}
        self._doing = ""
        self.lines = Lines(lambda: self._doing, clock, self._say)

    def on_fit_started(self, event: FitStarted) -> None:
        if self._enabled:
            self.lines.start()

    def on_phase_started(self, event: PhaseStarted) -> None:
        self._doing = _DOING[event.phase]

    def on_slots_awaited(self, event: SlotsAwaited) -> None:
        self._doing = _awaited(event)

    def on_generation_started(self, event: GenerationStarted) -> None:
        self._doing = _DOING["launch"]
        if event.generation:
            self._doing = f"ranks start, generation {event.generation}"
            self._notes["generation"] = str(event.generation)

    def on_steps_done(self, event: StepsDone) -> None:
        if not self._enabled:
            return
        self._doing = ""
        self._steps = event.steps
        self._notes["loss"] = f"{event.loss:.4f}"
        self._notes["rows/s"] = f"{event.rows_per_s:,.0f}"
        self._draw(event.epoch * event.steps + event.step, event.epochs * event.steps)

    def on_epoch_ended(self, event: EpochEnded) -> None:
        if event.row.get(self._monitor) is not None:
            self._notes[self._monitor] = f"{event.row[self._monitor]:.4f}"
        if self._bar is not None:  # reports between batches are some of them: of the last batches there may be none
            self._draw((event.epoch + 1) * self._steps, self._bar.total)

    def on_fit_ended(self, event: FitEnded) -> None:
        self.lines.stop()
        if self._bar is None:
            return
        epochs = len(event.history)
        done = epochs * self._steps
        if done < self._bar.total:
            self._notes["stopped"] = f"epoch {epochs - 1}"
            self._bar.total = done
        self._draw(done, done)
        self._bar.close()

    def on_fit_failed(self, event: FitFailed) -> None:
        self.lines.stop()
        if self._bar is not None:
            self._bar.close()

    def _say(self, text: str) -> None:
        if self._bar is None:
            _say(text)
        else:
            self._bar.write(text, file=sys.stderr)  # above the bar

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _tqdm()(total=total, desc="hvdspark fit", unit="batch", dynamic_ncols=True)
        self._bar.set_postfix(self._notes, refresh=False)
        if done == self._bar.total:  # tqdm leaves out what comes soon after what it drew
            self._bar.n = done
            self._bar.refresh()
        else:
            self._bar.update(done - self._bar.n)


class ProgressLines(FitListener):
    """A line every 30 seconds: what the fit does; with ranks epoch, batch, loss, rows/s and the validation metric.

    Lines go to the log of hvdspark where that takes INFO, else to stderr: nobody has to set up logging to see that
    training goes on.

    Args:
        clock: seconds.
    """

    def __init__(self, monitor: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor, self._doing, self._metric = monitor, "", ""
        self._lines = Lines(lambda: f"{self._doing}{self._metric}", clock, self._say)

    def on_fit_started(self, event: FitStarted) -> None:
        self._lines.start()

    def on_phase_started(self, event: PhaseStarted) -> None:
        self._doing = _DOING[event.phase]

    def on_slots_awaited(self, event: SlotsAwaited) -> None:
        self._doing = _awaited(event)

    def on_generation_started(self, event: GenerationStarted) -> None:
        again = f", generation {event.generation}" if event.generation else ""
        self._doing = _DOING["launch"] + again

    def on_steps_done(self, event: StepsDone) -> None:
        self._doing = (
            f"epoch {event.epoch + 1} of {event.epochs}, batch {event.step:,} of {event.steps:,}, "
            f"loss {event.loss:.4f}, {event.rows_per_s:,.0f} rows/s"
        )
        self._lines.say_if_due()

    def on_epoch_ended(self, event: EpochEnded) -> None:
        if event.row.get(self._monitor) is not None:
            self._metric = f", {self._monitor} {event.row[self._monitor]:.4f} after epoch {event.epoch + 1}"

    def on_fit_ended(self, event: FitEnded) -> None:
        self._lines.stop()
        if self._lines.said:
            epochs = "1 epoch" if len(event.history) == 1 else f"{len(event.history)} epochs"
            self._say(f"hvdspark fit: {epochs} in {self._lines.seconds():.0f} s{self._metric}")

    def on_fit_failed(self, event: FitFailed) -> None:
        self._lines.stop()

    def _say(self, text: str) -> None:
        _say(text)


class Lines:
    """What a fit does, said every 30 seconds by a thread, and in time by whoever has news.

    Args:
        doing: what to say; "": nothing.
        clock: seconds.
        say: takes the line.
    """

    def __init__(self, doing: Callable[[], str], clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._doing, self._clock, self._say = doing, clock, say
        self._started = self._last = clock()
        self.said = 0
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hvdspark-progress", daemon=True)

    def start(self) -> None:
        self._started = self._last = self._clock()
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing more will be said by the thread."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._started

    def say_if_due(self) -> None:
        with self._lock:
            now = self._clock()
            if now - self._last < _INTERVAL_S:
                return
            self._last = now
            doing = self._doing()
            self.said += bool(doing)
        if doing:
            self._say(f"hvdspark fit: {doing}, {now - self._started:.0f} s")

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._last + _INTERVAL_S - self._clock())):
            self.say_if_due()


def _awaited(event: SlotsAwaited) -> str:
    return f"waits for {event.slots} task slots, {event.free} of {event.total} are free"


def _say(text: str) -> None:
    if logger.isEnabledFor(logging.INFO) and logger.hasHandlers():
        logger.info(text)
    else:
        print(text, file=sys.stderr, flush=True)


def _tqdm() -> Any:
    # Without ipywidgets tqdm's notebook bar is a warning, and its plain one works in notebooks, too.
    if importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm
    return tqdm
