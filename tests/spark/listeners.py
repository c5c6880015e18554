"""A listener that keeps what it hears."""

from __future__ import annotations

from typing import Any

from hvdspark.events import FitEvent, FitListener


class Seen(FitListener):
    def __init__(self) -> None:
        self.events: list[FitEvent] = []

    def on_event(self, event: FitEvent) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
