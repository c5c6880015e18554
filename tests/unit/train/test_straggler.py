"""Which rank the others wait for."""

from __future__ import annotations

from typing import Any

import pytest

from hvdspark.collectives import run_threaded
from hvdspark.store import Store
from hvdspark.train import straggler as straggler_module
from hvdspark.train.straggler import busy_by_rank, straggler
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


@pytest.mark.parametrize("tables", [False, True])
def test_rank_0_tells_of_it_once_an_epoch(store_uri: str, monkeypatch: pytest.MonkeyPatch, tables: bool) -> None:
    monkeypatch.setattr(straggler_module, "_FACTOR", 0.0)
    monkeypatch.setattr(straggler_module, "_LEAST_S", -1e9)
    events: list[dict[str, Any]] = []
    store = Store(store_uri)
    spec = train_spec(store, write_dataset(store, click_columns(40)), epochs=2)
    make = lambda: click_program(module=ShardedNet() if tables else ClickNet())  # noqa: E731
    _, (result, _) = train_on_threads(spec, make, 2, events=events)
    told = [event for event in events if event["event"] == "straggler"]
    assert [event["epoch"] for event in told] == [0, 1]
    assert all(event["late"] in (0, 1) and event["seconds"] >= event["others"] >= 0 for event in told)
    for event, row in zip(told, result.history, strict=True):
        busy = row["loading_seconds"] + (0.0 if tables else row["forward_backward_seconds"])
        assert event["others" if event["late"] else "seconds"] == pytest.approx(busy), "of rank 0"
