"""What is said about the rows that Spark counted while it wrote them; the counting itself is in tests/spark."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from hvdspark.data.dataset import written
from hvdspark.errors import StoreError


class Told:
    """Spark's observation, which waits until it is told."""

    def __init__(self, rows: int | None, end: threading.Event) -> None:
        self._rows, self._end = rows, end

    @property
    def get(self) -> dict[str, Any]:
        if self._rows is None:
            self._end.wait(30)
        return {"rows": self._rows}


@pytest.mark.parametrize(("told", "warned"), [(5, 0), (None, 1)])
def test_a_count_that_does_not_come_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, told: int | None, warned: int
) -> None:
    end = threading.Event()
    monkeypatch.setattr(written, "_WAIT_S", 0.05 if told is None else 30.0)
    counted = object.__new__(written.CountedRows)
    counted._observation = Told(told, end)  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, "hvdspark"):
        counted.check(5, "a place")
    end.set()
    assert len(caplog.records) == warned
    assert all("the 5 found at a place" in record.getMessage() for record in caplog.records)


def test_another_count_is_an_error() -> None:
    counted = object.__new__(written.CountedRows)
    counted._observation = Told(6, threading.Event())  # type: ignore[assignment]
    with pytest.raises(StoreError, match="6 written, 5 found"):
        counted.check(5, "a place")
