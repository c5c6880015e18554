"""What a rank tells the driver while it trains: plain data, of which `hvdspark.fan_out` makes events there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

_INTERVAL_S = 0.25

Send = Callable[[dict[str, Any]], None]


class Reporter:
    """Rank 0's reports; the other ranks say which step they begin, and are silent else.

    Args:
        send: takes a JSON-able report; must not block.
        rank: the rank that this is.
        reached: takes the number of a step.

    Attributes:
        reached: says that a global batch of the run, counted from 0 over all epochs, begins.
    """

    def __init__(self, send: Send, rank: int, reached: Callable[[int], None] = lambda step: None) -> None:
        self._send = send if rank == 0 else _silent
        self.reached = reached
        self._last = -math.inf

    def steps_done(
        self,
        epoch: int,
        epochs: int,
        step: int,
        steps: int,
        rows: int,
        rows_per_s: float,
        loss: float,
        seconds: Callable[[], Mapping[str, float]],
    ) -> None:
        """Global batches are done; sent at most four times a second. The arguments are those of `StepsDone`.

        Args:
            seconds: called where something is sent.
        """
        now = time.perf_counter()
        if now - self._last < _INTERVAL_S:
            return
        self._last = now
        self._send(
            {
                "event": "progress",
                "epoch": epoch,
                "epochs": epochs,
                "step": step,
                "steps": steps,
                "rows": rows,
                "rows_per_s": rows_per_s,
                "loss": loss,
                "seconds": dict(seconds()),
            }
        )

    def epoch_ended(self, row: Mapping[str, Any]) -> None:
        """An epoch is trained and validated; its row of the history."""
        self._send({"event": "epoch", **row})

    def checkpoint_committed(
        self, epoch: int, path: str, stalled_s: float = 0.0, size: int = 0, seconds: float = 0.0
    ) -> None:
        """A checkpoint is complete. The arguments are those of `CheckpointCommitted`."""
        cost = {"stalled_s": stalled_s, "bytes": size, "seconds": seconds}
        self._send({"event": "checkpoint", "epoch": epoch, "path": path, **cost})

    def tables_read(self, size: int, moved: int) -> None:
        """The rows of sharded tables are there again. The arguments are those of `TablesRead`."""
        self._send({"event": "tables_read", "bytes": size, "moved_bytes": moved})

    def straggler(self, epoch: int, rank: int, seconds: float, others: float, step: int | None = None) -> None:
        """The others wait for this rank. The arguments are those of `Straggler`."""
        found = {"epoch": epoch, "late": rank, "seconds": seconds, "others": others, "step": step}
        self._send({"event": "straggler", **found})

    def warning(self, text: str) -> None:
        """The user should know this sentence."""
        self._send({"event": "warning", "text": text})


def _silent(report: dict[str, Any]) -> None:
    return None
