"""Ranks, their tasks and drivers on this host, killed as seeds say; no Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hvdspark.errors import StoreError
from hvdspark.store import Store
from hvdspark.train.callbacks import TrainState
from tests.chaos.drawn import draw
from tests.chaos.runner import MOST_RECOVERY_S, ended_twice_in_one_step
from tests.chaos.strikes import Attempt, Blow, damage_newest
from tests.chaos.tally import percentile
from tests.chaos.verdict import differences
from tests.chaos.weak_store import WeakStore, has_failed, let_fail

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, limit_s: float) -> list[dict[str, Any]]:
    """The lines of the runner, none of which says that something is wrong."""
    command = [sys.executable, "-m", "tests.chaos.runner", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [
        {key: line[key] for key in ("seed", "outcome", "why", "blows")}
        for line in lines
        if line["outcome"] not in ("ok", "stopped")
    ]
    assert not wrong, json.dumps(wrong, indent=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return lines


def test_what_a_seed_draws_is_always_the_same() -> None:
    assert draw(7, 5) == draw(7, 5) != draw(8, 5)
    fits = [draw(seed, 1).fit for seed in range(200)]
    assert {fit.size for fit in fits} == {1, 2, 3, 4}
    assert {fit.model for fit in fits} == {"dense", "sharded"}
    faults = [fault for seed in range(60) for fault in draw(seed, 5).faults]
    assert {fault.victim for fault in faults} == {"rank", "task", "all tasks", "driver", "store"}
    assert {fault.signal for fault in faults} == {"KILL", "TERM", "STOP", "EIO", "ENOSPC"}


def test_rows_that_were_lost_or_trained_twice_are_seen() -> None:
    calm = {"weight": torch.ones(2), "counts": torch.ones(6, 2)}
    assert differences(calm, calm) == []
    struck = {"weight": torch.ones(2) * 1.00001, "counts": torch.ones(6, 2)}
    struck["counts"][4, 1] = 2
    assert differences(calm, struck) == [
        "weight differs by 1.00136e-05",
        "counts differs by 1",
        "disturbed: row 4 of epoch 1 was trained 2 times",
    ]
    assert differences(calm, {**calm, "weight": torch.tensor([1.0, float("nan")])}) == ["weight differs by nan"]


@pytest.mark.parametrize(
    ("lost", "struck", "promised"),
    [
        ([(3, 1), (4, 1)], [("rank", 3), ("task", 4)], True),
        ([(2, 0), (3, 1), (4, 1)], [("rank", 2), ("rank", 3), ("all tasks", 4)], True),
        ([(3, 1), (4, 1)], [("rank", 2), ("rank", 3)], False),  # nobody ended generation 4
        ([(3, 1), (4, 1)], [("rank", 3), ("driver", 4)], False),
        ([(3, 0), (4, 1)], [("rank", 3), ("rank", 4)], False),
        ([(4, 1)], [("rank", 3), ("rank", 4)], False),
    ],
)
def test_a_run_that_stops_must_have_been_struck_in_that_step(
    lost: list[tuple[int, int]], struck: list[tuple[str, int]], promised: bool
) -> None:
    events = [{"event": "generation"}, *({"event": "rank_lost", "generation": g, "lost": rank} for g, rank in lost)]
    blows = [Blow(replace(draw(7, 1).faults[0], victim=victim), 0, generation) for victim, generation in struck]
    why = ["struck: RankFailedError: killed; not started again: rank 1 has ended in step 7 twice, as the step ends it"]
    assert ended_twice_in_one_step(why, events, blows) is promised
    assert not ended_twice_in_one_step(["struck: RankFailedError: killed"], events, blows)


def test_only_a_checkpoint_with_an_older_one_behind_it_is_damaged(tmp_path: Path) -> None:
    for name in ("epoch-00001", "epoch-00002"):
        assert damage_newest(tmp_path, "flip", 1) == ""
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "epoch-00003").mkdir()  # begun
    assert damage_newest(tmp_path, "truncate", 1) == "epoch-00002/manifest.json"
    assert (tmp_path / "epoch-00002/manifest.json").read_text() == "{"
    assert (tmp_path / "epoch-00001/manifest.json").read_text() == "{}"


def test_rows_of_tables_are_damaged_where_an_older_checkpoint_has_others(tmp_path: Path) -> None:
    def commit(name: str, *files: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(
            json.dumps({"tables": [{"files": [{"path": file} for file in files]}]})
        )
        for file in files:
            (tmp_path / "rows/tables/0" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "rows/tables/0" / file).write_bytes(b"rows")

    commit("epoch-00001", "1/a")
    commit("epoch-00002", "1/a", "2/b")
    assert damage_newest(tmp_path, "truncate", 1) == "epoch-00002/manifest.json"
    assert damage_newest(tmp_path, "truncate", 1) == "", "one is damaged, and there are no two others"
    commit("epoch-00003", "3/c")
    assert damage_newest(tmp_path, "flip", 0) == "rows/tables/0/3/c"


@pytest.mark.parametrize("before", ["epoch-00001/manifest.json", "rows/tables/0/1/a"])
def test_nothing_is_damaged_where_all_older_ones_are(tmp_path: Path, before: str) -> None:
    for name, file in (("epoch-00001", "1/a"), ("epoch-00002", "2/b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"tables": [{"files": [{"path": file}]}]}))
        (tmp_path / "rows/tables/0" / file).parent.mkdir(parents=True)
        (tmp_path / "rows/tables/0" / file).write_bytes(b"rows")
    assert damage_newest(tmp_path, "flip", 0, [before]) == ""
    assert damage_newest(tmp_path, "flip", 0, ["epoch-00002/manifest.json"]) != ""


def test_nobody_dies_more_often_in_a_row_than_estimators_bear(tmp_path: Path) -> None:
    attempt, said = Attempt(0, tmp_path, 0), []
    with (tmp_path / "events.jsonl").open("w") as events:
        for event in ("generation", "generation", "epoch", "checkpoint", "generation", "generation", "checkpoint"):
            print(json.dumps({"event": event}), file=events, flush=True)
            said.append(attempt.deaths_in_a_row())
    assert said == [0, 1, 1, 0, 1, 2, 0]


def test_writes_fail_as_often_as_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", os.replace)  # is put back
    weak, store = WeakStore(str(tmp_path)), Store(str(tmp_path / "store"))
    weak.on_train_begin(cast(TrainState, None))
    let_fail(tmp_path, "EIO", fault=3, times=2)
    assert not has_failed(tmp_path, "EIO", 3)
    store.write_text("runs/x/record", "of no checkpoint")
    store.write_text("runs/x/checkpoints/file", "asked again")
    assert has_failed(tmp_path, "EIO", 3)
    let_fail(tmp_path, "ENOSPC", fault=4, times=1)
    with pytest.raises(StoreError, match="the store is full"):
        store.write_text("runs/x/checkpoints/file", "of another content")
    assert store.read_text("runs/x/checkpoints/file") == "asked again"
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_few_deaths_change_nothing() -> None:
    (line,) = run("--seed", "1", "--kills", "1", limit_s=110)
    assert line["struck"] > 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_many_deaths_change_nothing() -> None:
    lines = run("--seed", "100", "--seeds", "10", "--kills", "10", limit_s=880)
    recovered = [seconds for line in lines for seconds in line["recovery_s"]]
    assert len(recovered) > 50
    assert percentile(recovered, 95) <= MOST_RECOVERY_S
