from __future__ import annotations

import pytest

from hvdspark.train import clock
from hvdspark.train.clock import Clock


def test_the_clock_adds_up_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(now))
    phases = Clock()
    with phases("loading"):
        pass
    with pytest.raises(KeyError), phases("loading"):
        raise KeyError
    assert phases.seconds["loading"] == 2.5
