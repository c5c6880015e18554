"""What is said about the rows that Spark counted while it wrote them; the counting itself is in tests/spark."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from hvdspark.data.dataset import written
from hvdspark.errors import StoreError


class Told:
    """What Spark says, which waits until it is told, or the test ends."""

    def __init__(self, told: Any, end: threading.Event) -> None:
        self._told, self._end = told, end

    def __call__(self, place: str) -> int | None:
        if self._told is WAITS:
            self._end.wait(30)
            raise RuntimeError("the session was stopped")
        if isinstance(self._told, Exception):
            raise self._told
        return self._told  # type: ignore[no-any-return]


WAITS = object()


@pytest.mark.filterwarnings("error")  # the thread that asks does not raise
@pytest.mark.parametrize(
    ("told", "warned"),
    [(5, 0), (WAITS, 1), (None, 1), (RuntimeError("the session was stopped"), 1)],
)
def test_a_count_that_does_not_come_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: Any, warned: int
) -> None:
    end = threading.Event()
    monkeypatch.setattr(written, "_WAIT_S", 0.05 if told is WAITS else 30.0)
    counted = object.__new__(written.CountedRows)
    counted._told = Told(told, end)
    before = set(threading.enumerate())
    with caplog.at_level(logging.WARNING, "hvdspark"):
        counted.check(5, "a place")
    end.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
    assert len(caplog.records) == warned
    assert all("the 5 found at a place" in record.getMessage() for record in caplog.records)


def test_another_count_is_an_error() -> None:
    counted = object.__new__(written.CountedRows)
    counted._told = Told(6, threading.Event())
    with pytest.raises(StoreError, match="6 written, 5 found"):
        counted.check(5, "a place")
