"""What stays in the store of a run that ends early, and what a later fit of the same name finds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hvdspark import launch
from hvdspark.data.dataset import cache
from hvdspark.errors import CheckpointError, ConfigurationError, StoreError
from hvdspark.specs import DatasetSpec, RowGroups, TrainSpec, to_json
from hvdspark.store import Store
from hvdspark.train import driver
from hvdspark.train.keeping import NamedRun, PassingRun, named
from hvdspark.train.program import TrainResult
from hvdspark.train.run_record import RunRecord

DATA = DatasetSpec("datasets/00ff", (), RowGroups.of(), fingerprint="f")
RECORD = RunRecord({"learning_rate": 0.1}, 3, DATA)
RESULT = TrainResult(({"epoch": 0},), 0, 1, None, "runs/mine/model", (), "float32", 7, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path.as_uri())
    store.write_text("datasets/00ff/data/part", "rows")
    store.write_text("datasets/00ff/lease.json", json.dumps({"host": "elsewhere", "used": 0.0}))  # of a dead process
    return store


def run(store: Store) -> NamedRun:
    return NamedRun(store, "mine", lambda: None)


def trained(store: Store, run_id: str = "mine") -> None:
    for name in ("checkpoints/epoch-00000/manifest.json", "initial/manifest.json", "model/manifest.json"):
        store.write_text(f"runs/{run_id}/{name}", "{}")


def test_a_named_run_is_found_again_with_its_rows(store: Store) -> None:
    first = run(store)
    assert (first.before, first.result, first.generation) == (None, None, 0)
    first.begin(RECORD)
    first.launched(0)
    first.launched(1)  # started again once
    trained(store)
    cache.collect_leftovers(store)  # of whoever writes into the store next, when the driver is dead
    again = run(store)
    assert again.before == dataclasses.replace(RECORD, generation=1)
    assert again.generation == 2, "numbers of generations are those of the run"
    assert store.exists("datasets/00ff/data/part")
    assert store.exists("runs/mine/checkpoints/epoch-00000")
    again.begin(dataclasses.replace(RECORD, epochs=5))
    assert run(store).before == dataclasses.replace(RECORD, epochs=5, generation=2)


def test_a_launch_that_could_not_be_recorded_counts_nevertheless(store: Store) -> None:
    first = run(store)
    first.begin(RECORD)
    store.write_text("runs/mine/generation.json", json.dumps({"generation": 7, "token": "a"}))
    assert run(store).generation == 8, "ranks of generation 7 may still live"
    store.write_text("runs/mine/generation.json", "nonsense")
    assert run(store).generation == 1


def test_its_lease_is_no_reason_to_delete_it(store: Store) -> None:
    run(store).begin(RECORD)
    store.write_text("leases/mine.json", json.dumps({"host": "elsewhere", "used": 0.0}))
    cache.collect_leftovers(store)
    assert run(store).before is not None
    store.delete("runs/mine")  # somebody gives it up
    cache.collect_leftovers(store)
    assert store.list("datasets") == store.list("leases") == []


def test_a_run_with_other_settings_is_refused_before_anything_changes(store: Store) -> None:
    run(store).begin(RECORD)
    with pytest.raises(ConfigurationError, match="learning_rate was 0.1 and is 0.2"):
        run(store).begin(dataclasses.replace(RECORD, settings={"learning_rate": 0.2}))
    assert run(store).before == RECORD


def test_what_fails_stays_and_it_is_said_how_to_go_on(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one = run(store)
    one.begin(RECORD)
    trained(store)
    with caplog.at_level(logging.WARNING, "hvdspark"):
        one.failed(ValueError("x"))
    assert "runId='mine'" in caplog.text
    assert store.exists("runs/mine/checkpoints/epoch-00000")


def test_of_a_finished_run_the_model_is_there_and_nothing_else(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    one = run(store)
    one.begin(RECORD)
    trained(store)
    one.finished(RESULT)
    assert store.list("runs/mine") == ["model", "result.json", "run.json"]
    assert store.list("datasets") == []
    again = run(store)
    assert again.result == RESULT
    with caplog.at_level(logging.WARNING, "hvdspark"):
        again.begin(RECORD)
    assert "nothing trained" in caplog.text
    with pytest.raises(ConfigurationError, match="finished after 3 epochs.*: 4 .in epochs.*warmStartFrom"):
        again.begin(dataclasses.replace(RECORD, epochs=4))
    others = dataclasses.replace(DATA, fingerprint="of others")
    with pytest.raises(ConfigurationError, match="finished, with other rows"):
        again.begin(dataclasses.replace(RECORD, dataset=others))


def test_who_finds_a_finished_run_deletes_what_its_driver_could_not(store: Store) -> None:
    one = run(store)
    one.begin(RECORD)
    trained(store)
    store.write_text("runs/mine/result.json", to_json(RESULT))  # and there it was killed
    run(store).begin(RECORD)
    assert store.list("runs/mine") == ["model", "result.json", "run.json"]
    assert store.list("datasets") == []


def test_what_training_needed_is_deleted_while_the_run_is_still_this_drivers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the driver killed in between, nobody would look for it any more."""
    leased = []

    def finished(self: PassingRun, result: TrainResult) -> None:
        leased.append((store.list("leases"), result))

    monkeypatch.setattr(PassingRun, "finished", finished)
    monkeypatch.setattr(driver.launch, "run", lambda *_, **__: [to_json(RESULT)])
    monkeypatch.setattr(driver, "send", lambda *_, **__: b"")
    spec = TrainSpec("mine", store.uri, DATA, ("x",), ("y",))
    nothing: Any = None
    gang = driver.Gang(1, None, None, "cpu", {}, 1.0, 1.0, 0)
    keeping = PassingRun(store, "mine")
    assert driver.train_on_ranks(nothing, spec, nothing, gang, print, launch.Preemption(), keeping) == RESULT
    assert leased == [(["mine.json"], RESULT)]
    assert store.list("leases") == []


def test_one_that_was_killed_before_it_said_so_is_not_finished(store: Store) -> None:
    run(store).begin(RECORD)
    trained(store)
    assert run(store).result is None
    store.write_text("runs/mine/result.json", "{")
    with pytest.raises(CheckpointError, match="result of a run cannot be read.*Hint"):
        run(store)


def test_of_a_run_without_a_name_nothing_stays(store: Store) -> None:
    one = PassingRun(store, "mine")
    one.begin(RECORD)
    with one.holding():
        trained(store)
        assert store.list("leases") == ["mine.json"]
        assert not store.exists("runs/mine/run.json")
    one.failed(ValueError("x"))
    assert store.list("runs") == []


def test_one_that_was_asked_to_make_room_can_be_gone_on_with_by_its_id(store: Store) -> None:
    one = PassingRun(store, "auto-1")
    one.begin(RECORD)
    one.launched(3)
    with contextlib.suppress(ValueError), one.holding():
        trained(store, "auto-1")
        raise ValueError
    assert "runId='auto-1'" in one.made_room()
    cache.collect_leftovers(store)
    assert store.exists("datasets/00ff/data/part")
    assert store.list("leases") == [], "nobody is at it"
    again = NamedRun(store, "auto-1", lambda: None)
    assert again.before == dataclasses.replace(RECORD, generation=3)


def test_two_fits_of_one_name(store: Store) -> None:
    with named(store, "mine", pytest.fail) as one:
        one.begin(RECORD)
        with pytest.raises(ConfigurationError, match="trained already"):
            named(store, "mine", pytest.fail).__enter__()
        lease = json.loads(store.read_text("leases/mine.json"))
        store.write_text("leases/mine.json", json.dumps(lease | {"token": "theirs"}))
        with pytest.raises(ConfigurationError, match="claimed it at the same time"):
            one.begin(RECORD)


def test_what_cannot_be_deleted_keeps_nothing_else_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, delete = PassingRun(store, "mine"), Store.delete

    def refuse(self: Store, path: str) -> None:
        if path.endswith("generation.json"):
            raise StoreError("no", value=path)
        delete(self, path)

    trained(store)
    monkeypatch.setattr(Store, "delete", refuse)
    one.finished(RESULT)
    assert store.list("runs/mine") == ["model"]
