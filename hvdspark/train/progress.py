"""A progress bar on the driver while ranks train, fed by the events they report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether to draw: on a terminal or in a notebook, unless HVDSPARK_PROGRESS=0 (=1 insists)."""
    choice = environ.get("HVDSPARK_PROGRESS", "")
    if choice in ("0", "1"):
        return choice == "1"
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class ProgressBar:
    """One bar for a fit: global batches over all epochs, with rows/s, loss and the validation metric.

    A context manager; `on_event` may be called from other threads.
    """

    def __init__(self, enabled: bool, monitor: str) -> None:
        self._enabled, self._monitor = enabled, monitor
        self._bar: Any = None
        self._notes: dict[str, str] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_event(self, event: dict[str, Any]) -> None:
        if not self._enabled or event.get("event") not in ("progress", "epoch"):
            return
        if event["event"] == "progress":
            self._notes["loss"] = f"{event['loss']:.4f}"
            self._notes["rows/s"] = f"{event['rows_per_s']:,.0f}"
            self._draw(event["epoch"] * event["steps"] + event["step"], event["epochs"] * event["steps"])
        elif event.get(self._monitor) is not None:
            self._notes[self._monitor] = f"{event[self._monitor]:.4f}"

    def _draw(self, done: int, total: int) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="hvdspark fit", unit="batch", dynamic_ncols=True)
        self._bar.set_postfix(self._notes, refresh=False)
        self._bar.update(done - self._bar.n)
