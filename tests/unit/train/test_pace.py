from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.pace import CheckpointPace, interval
from tests.unit.train.datasets import click_columns, train_spec, write_dataset


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    store = Store(str(tmp_path))
    dataset = write_dataset(store, click_columns(4))
    return lambda **changes: train_spec(store, dataset, **changes)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost_s", [1e-4, 0.01, 0.1, 1.0, 3.0, 10.0, 100.0])
def test_checkpoints_cost_at_most_three_percent(cost_s: float) -> None:
    assert cost_s / interval(cost_s) <= 0.03 + 1e-12
    assert 5.0 <= interval(cost_s) <= max(60.0, cost_s / 0.03)


def test_cheap_ones_come_often_and_the_others_once_a_minute() -> None:
    assert [round(interval(cost_s), 1) for cost_s in (1e-6, 0.02, 0.25, 1.0)] == [5.0, 12.0, 42.4, 60.0]


def test_what_one_costs_decides_when_the_next_is_due(spec: Any) -> None:
    clock = Clock()
    pace = CheckpointPace(spec(), clock)
    clock.now = 59.0
    assert not pace.is_due()
    clock.now = 60.0
    assert pace.is_due()
    pace.begun()
    pace.cost(0.02)
    clock.now = 71.0
    assert not pace.is_due()
    clock.now = 72.1
    assert pace.is_due()


def test_asked_for_seconds_and_steps(spec: Any) -> None:
    clock, asked = Clock(), spec(checkpoint_interval_seconds=3.0)
    pace = CheckpointPace(asked, clock)
    pace.cost(100.0)
    assert pace.interval_s == 3.0
    assert not pace.is_due_by_steps(0, 10**6)
    by_steps = CheckpointPace(spec(checkpoint_interval_steps=5), clock)
    assert by_steps.interval_s == math.inf
    due = [now for now in range(1, 16) if by_steps.is_due_by_steps(now - 1, now)]
    assert due == [5, 10, 15]
    accumulated = [now for now in range(2, 21, 2) if by_steps.is_due_by_steps(now - 2, now)]
    assert accumulated == [6, 10, 16, 20]


def test_a_spec_without_them_is_read(spec: Any) -> None:
    assert isinstance(spec(), TrainSpec)
    assert spec().checkpoint_interval_steps is None
