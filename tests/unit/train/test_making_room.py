"""Ranks that are asked to make room stop after the same step, behind a checkpoint, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.errors import PreemptedError, StoreError
from hvdspark.specs import TrainSpec
from hvdspark.store import Store
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.test_loop_tables import ShardedNet, rows_of
from tests.unit.train.toys import click_program, largest_difference, train_on_threads, weights_of

ROWS = 70


@pytest.fixture
def store(store_uri: str) -> Store:
    return Store(store_uri)


def program() -> Program:
    return click_program(module=ShardedNet("adam"))


def asked(spec: TrainSpec, reasons: dict[int, str], generation: int = 0) -> tuple[list[str], list[dict[str, Any]]]:
    """What each of two ranks says when these ranks are asked for these reasons, and what is reported."""
    events: list[dict[str, Any]] = []
    # Made before there are threads: two of them that seed torch's one generator at once draw each other's numbers.
    programs = [program(), program()]

    def on_rank(collective: ThreadedCollective) -> str:
        try:
            reason, own = reasons.get(collective.rank, ""), programs[collective.rank]
            train(spec, own, collective, "cpu", events.append, generation, preempted=lambda: reason)
        except PreemptedError as error:
            return f"{error.run_id}: {error}"
        return "trained"

    return run_threaded(2, on_rank, timeout_s=20), events


@pytest.mark.parametrize("victim", [0, 1])
def test_all_stop_after_the_same_step_and_go_on_from_it(store: Store, victim: int) -> None:
    dataset = write_dataset(store, click_columns(ROWS))
    changes: dict[str, Any] = {"batch_size": 13, "epochs": 2}
    whole, _ = train_on_threads(train_spec(store, dataset, run_id="whole", **changes), program, 2)
    spec = train_spec(store, dataset, run_id="cut", **changes)
    said, events = asked(spec, {victim: "its executor goes"})
    place = "after 2 batches of epoch 0"  # the first decision point is behind the first step
    assert said[victim] == f"cut: training has stopped behind a checkpoint, {place}: its executor goes"
    assert said[1 - victim].endswith(f"{place}: another rank was asked to make room")
    paths = [event["path"] for event in events if event["event"] == "checkpoint"]
    assert paths == ["runs/cut/checkpoints/epoch-00000-step-00000002"]
    resumed, _ = train_on_threads(spec, program, 2, generation=1)
    assert largest_difference(weights_of(resumed[0]), weights_of(whole[0])) == 0.0
    assert largest_difference(rows_of(resumed), rows_of(whole)) == 0.0


@pytest.mark.parametrize(("failures", "behind"), [(1, "behind a checkpoint"), (2, "without a checkpoint")])
def test_a_checkpoint_that_cannot_be_written_is_tried_once_more_and_never_claimed(
    store: Store, monkeypatch: pytest.MonkeyPatch, failures: int, behind: str
) -> None:
    commit, left = Store.commit, [failures]

    def full(self: Store, path: str, manifest: dict[str, Any]) -> None:
        if "/checkpoints/" in path and left[0]:
            left[0] -= 1
            raise StoreError("the store is full", value=path)
        commit(self, path, manifest)

    monkeypatch.setattr(Store, "commit", full)
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=13, epochs=2)
    said, _ = asked(spec, {0: "its executor goes"})
    assert all(f"training has stopped {behind}" in of_rank for of_rank in said)
    there = store.exists(f"runs/{spec.run_id}/checkpoints/epoch-00000-step-00000002/manifest.json")
    assert there == (failures == 1)


def test_at_the_end_of_an_epoch_its_end_comes_first(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=ROWS // 2, epochs=2)
    said, events = asked(spec, {0: "a user wants it"})
    assert (
        said[0]
        == f"{spec.run_id}: training has stopped behind a checkpoint, after 0 batches of epoch 1: a user wants it"
    )
    paths = [event["path"].rsplit("/", 1)[-1] for event in events if event["event"] == "checkpoint"]
    assert paths == ["epoch-00000"]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [0]


def test_a_run_that_is_about_to_end_ends(store: Store) -> None:
    spec = train_spec(store, write_dataset(store, click_columns(ROWS)), batch_size=ROWS // 2, epochs=1)
    assert asked(spec, {0: "x", 1: "x"})[0] == ["trained", "trained"]
    assert store.exists(f"runs/{spec.run_id}/model/manifest.json")
