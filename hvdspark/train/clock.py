"""Where the time of a rank goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PHASES = ("loading", "forward_backward", "exchange_step", "validation", "checkpoint")


class Clock:
    """Wall seconds by phase, since the rank was launched."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def since(self, before: dict[str, float]) -> dict[str, float]:
        """Seconds by phase since `seconds` was `before`."""
        return {phase: total - before[phase] for phase, total in self.seconds.items()}
