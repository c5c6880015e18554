"""Which rank the others wait for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from hvdspark.collectives import run_threaded
from hvdspark.collectives.watched import Waiting
from hvdspark.store import Store
from hvdspark.train import straggler as straggler_module
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.straggler import BusyTime, StragglerWatch, busy_by_rank, straggler
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.test_loop_tables import ShardedNet
from tests.unit.train.toys import ClickNet, click_program, train_on_threads


@pytest.mark.parametrize(
    ("busy", "found"),
    [
        ([5.0], None),
        ([10.0, 10.5, 11.0], None),
        ([10.0, 30.0, 12.0, 11.0], (1, 11.0)),
        ([10.0, 14.0], None),
        ([10.0, 16.0], (1, 10.0)),
        ([0.1, 0.9], None),
        ([0.0, 1.2], (1, 0.0)),
    ],
)
def test_a_rank_is_late_where_it_is_much_slower_than_the_others(
    busy: list[float], found: tuple[int, float] | None
) -> None:
    assert straggler(busy) == found


def test_every_rank_knows_what_each_was_busy() -> None:
    found = run_threaded(3, lambda collective: busy_by_rank(collective, collective.rank + 0.5))
    assert found == [[0.5, 1.5, 2.5]] * 3


def test_a_pause_of_one_step_is_not_seen() -> None:
    now, waiting = [0.0], Waiting(lambda: now[0])
    busy = BusyTime(waiting, lambda: now[0])
    for seconds in (0.01, 0.01, 5.0, 0.01, 0.01, 0.03, 0.03, 0.03):
        busy.begin()
        now[0] += seconds / 2
        with waiting("gradients"):
            now[0] += 7.0
        now[0] += seconds / 2
        busy.end()
    assert busy.total == pytest.approx(0.01 * 6 + 0.03 * 2)


def test_a_rank_is_told_of_once_an_epoch() -> None:
    told: list[tuple[int, float, float]] = []
    watch = StragglerWatch(lambda *found: told.append(found))
    for _ in range(2):
        watch.begin_epoch()
        watch.look([])
        watch.look([0.10, 0.11, 0.12])
        watch.look([0.001, 0.003, 0.001])  # three times as slow, and nobody notices
        watch.look([0.10, 0.31, 0.12])
        watch.look([0.10, 0.31, 0.12])
        watch.look([0.50, 0.11, 0.12])
    assert told == [(1, 0.31, pytest.approx(0.11)), (0, 0.50, pytest.approx(0.115))] * 2


@pytest.mark.parametrize("tables", [False, True])
def test_rank_0_tells_of_it_once_an_epoch(store_uri: str, monkeypatch: pytest.MonkeyPatch, tables: bool) -> None:
    monkeypatch.setattr(straggler_module, "_FACTOR", 0.0)
    monkeypatch.setattr(straggler_module, "_LEAST_S", -1e9)
    events: list[dict[str, Any]] = []
    store = Store(store_uri)
    spec = train_spec(store, write_dataset(store, click_columns(40)), epochs=2)
    make = lambda: click_program(module=ShardedNet() if tables else ClickNet())  # noqa: E731
    _, (result, _) = train_on_threads(spec, make, 2, events=events)
    told = [event for event in events if event["event"] == "straggler" and event["step"] is None]
    assert [event["epoch"] for event in told] == [0, 1]
    assert all(event["late"] in (0, 1) and event["seconds"] >= event["others"] >= 0 for event in told)
    for event, row in zip(told, result.history, strict=True):
        busy, own = (
            row["loading_seconds"] + row["forward_backward_seconds"],
            event["others" if event["late"] else "seconds"],
        )
        assert own < busy if tables else own == pytest.approx(busy), "of rank 0, without what it waits for others"


class _Slow(Callback):
    """From a step on, three times the time of a step of 20 ms on one rank."""

    def __init__(self, rank: int, step: int) -> None:
        self._rank, self._step = rank, step

    def on_batch_end(self, state: TrainState) -> None:
        slow = state.rank == self._rank and state.step >= self._step
        time.sleep(0.06 if slow else 0.02)  # what is tested: ranks that take longer


@pytest.mark.parametrize("tables", [False, True])
def test_a_rank_that_is_three_times_as_slow_is_named_within_20_steps(store_uri: str, tables: bool) -> None:
    events: list[dict[str, Any]] = []
    store = Store(store_uri)
    spec = train_spec(store, write_dataset(store, click_columns(200)), epochs=1, batch_size=4)
    module = ShardedNet if tables else ClickNet
    train_on_threads(spec, lambda: click_program(module=module(), callbacks=[_Slow(1, 25)]), 2, events=events)
    told = [event for event in events if event["event"] == "straggler" and event["step"] is not None]
    named = next(event for event in told if event["late"] == 1)
    assert 25 < named["step"] <= 25 + 20
    assert named["seconds"] > 1.5 * named["others"] > 0
