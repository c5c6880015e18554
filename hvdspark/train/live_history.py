"""The history of a fit while it runs, for who has a look at it, or at what a fit that failed had reached."""

from __future__ import annotations

from hvdspark.events import EpochEnded, FitEnded, FitListener, FitStarted
from hvdspark.events.base import Row


class History(FitListener):
    """Rows of the history of one fit: what a fit that failed or was interrupted had reached, too.

    Attributes:
        rows: one for each epoch.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_fit_started(self, event: FitStarted) -> None:
        self.rows = []

    def on_epoch_ended(self, event: EpochEnded) -> None:
        # After a restart an epoch may come a second time.
        self.rows = [*(row for row in self.rows if row["epoch"] < event.epoch), event.row]

    def on_fit_ended(self, event: FitEnded) -> None:
        self.rows = list(event.history)  # reports of ranks may have been lost
