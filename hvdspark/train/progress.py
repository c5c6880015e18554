"""What a fit shows on the driver while ranks train, fed by the events they report.

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
from typing import Any, Protocol

logger = logging.getLogger(__name__)

_INTERVAL_S = 30.0


class Progress(Protocol):
    """A context manager for the time of a fit; `on_event` may be called from other threads."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *exception: object) -> None: ...

    def phase(self, doing: str) -> None:
        """Say what the fit does until ranks report."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Take in what a rank reports."""

    def finished(self, epochs: int) -> None:
        """Training ended after that many epochs: fewer than were asked for where it stopped early."""


def progress(monitor: str, environ: Mapping[str, str] = os.environ, *, doing: str = "") -> Progress:
    """A bar where somebody looks, else lines; HVDSPARK_PROGRESS=1 is always a bar, =0 nothing.

    Args:
        monitor: key of the metric to show beside the loss.
        doing: the first `phase`.
    """
    if wanted(environ) or environ.get("HVDSPARK_PROGRESS") == "0":
        return ProgressBar(wanted(environ), monitor)
    return ProgressLines(monitor, doing=doing)


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to draw a bar: on a terminal or in a notebook, unless HVDSPARK_PROGRESS=0 (=1 insists)."""
    choice = environ.get("HVDSPARK_PROGRESS", "")
    if choice in ("0", "1"):
        return choice == "1"
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class ProgressBar:
    """One bar for a fit: global batches over all epochs, with rows/s, loss and the validation metric."""

    def __init__(self, enabled: bool, monitor: str) -> None:
        self._enabled, self._monitor = enabled, monitor
        self._bar: Any = None
        self._steps = 0
        self._notes: dict[str, str] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def phase(self, doing: str) -> None:
        """Nothing: a bar begins with the first batch, and Spark draws its own for the jobs before."""

    def on_event(self, event: dict[str, Any]) -> None:
        if not self._enabled or event.get("event") not in ("progress", "epoch"):
            return
        if event["event"] == "progress":
            self._steps = event["steps"]
            self._notes["loss"] = f"{event['loss']:.4f}"
            self._notes["rows/s"] = f"{event['rows_per_s']:,.0f}"
            self._draw(event["epoch"] * event["steps"] + event["step"], event["epochs"] * event["steps"])
            return
        if event.get(self._monitor) is not None:
            self._notes[self._monitor] = f"{event[self._monitor]:.4f}"
        if self._bar is not None:  # reports between batches are some of them: of the last batches there may be none
            self._draw((event["epoch"] + 1) * self._steps, self._bar.total)

    def finished(self, epochs: int) -> None:
        if self._bar is None:
            return
        done = epochs * self._steps
        if done < self._bar.total:
            self._notes["stopped"] = f"epoch {epochs - 1}"
            self._bar.total = done
        self._draw(done, done)

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _tqdm()(total=total, desc="hvdspark fit", unit="batch", dynamic_ncols=True)
        self._bar.set_postfix(self._notes, refresh=False)
        if done == self._bar.total:  # tqdm leaves out what comes soon after what it drew
            self._bar.n = done
            self._bar.refresh()
        else:
            self._bar.update(done - self._bar.n)


class ProgressLines:
    """A line every 30 seconds: what the fit does; with ranks epoch, batch, loss, rows/s and the validation metric.

    Lines go to the log of hvdspark where that takes INFO, else to stderr: nobody has to set up logging to see that
    training goes on.

    Args:
        clock: seconds.
        doing: the first `phase`.
    """

    def __init__(self, monitor: str, clock: Callable[[], float] = time.monotonic, *, doing: str = "") -> None:
        self._monitor, self._clock = monitor, clock
        self._started = self._said = clock()
        self._doing, self._metric = doing, ""
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hvdspark-progress", daemon=True)

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def phase(self, doing: str) -> None:
        self._doing = doing

    def on_event(self, event: dict[str, Any]) -> None:
        if event.get("event") == "epoch" and event.get(self._monitor) is not None:
            self._metric = f", {self._monitor} {event[self._monitor]:.4f} after epoch {event['epoch'] + 1}"
        if event.get("event") == "progress":
            self._doing = (
                f"epoch {event['epoch'] + 1} of {event['epochs']}, batch {event['step']:,} of {event['steps']:,}, "
                f"loss {event['loss']:.4f}, {event['rows_per_s']:,.0f} rows/s"
            )
            self._say_if_due()

    def finished(self, epochs: int) -> None:
        if self._said > self._started:
            _say(f"hvdspark fit: {epochs} epochs in {self._clock() - self._started:.0f} s{self._metric}")

    def _watch(self) -> None:
        while not self._over.wait(max(0.0, self._said + _INTERVAL_S - self._clock())):
            self._say_if_due()

    def _say_if_due(self) -> None:
        with self._lock:
            now = self._clock()
            if now - self._said < _INTERVAL_S:
                return
            self._said = now
        _say(f"hvdspark fit: {self._doing}{self._metric}, {now - self._started:.0f} s")


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
