"""A driver that is killed in the middle of a fit with a name, and the same script once more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdspark.store import Store
from hvdspark.train.places import Place, place_of
from tests.chaos.driver_fit import CTR, DIE, EPOCHS, FINISH, RUN_ID, TORCH
from tests.footprint import Footprint, leaks_after_settling

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(600)]


def drive(folder: Path, which: str, how: str) -> int:
    """Run the script to its end, whatever that is; what it ended with. What it says is in `how`.out."""
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.chaos.driver_fit", str(folder), which, how]
    with (folder / f"{how}.out").open("wb") as said:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=280)
    return done.returncode


def told(folder: Path, how: str, kind: str) -> list[dict[str, Any]]:
    events = map(json.loads, (folder / f"{how}.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == kind]


def place(committed: dict[str, Any]) -> Place:
    """(complete epochs, global batches of the next) of a checkpoint that was told."""
    found = place_of(Path(committed["path"]).name)
    assert found is not None, committed
    return found


@pytest.mark.parametrize("which", [TORCH, CTR])
def test_a_killed_driver_s_fit_is_gone_on_with_by_its_name(
    which: str, tmp_path: Path, spark_home: Path, nothing_left_behind: None
) -> None:
    for name in ("tmp", "local"):
        (tmp_path / name).mkdir()
    before = Footprint.take()
    assert drive(tmp_path, which, DIE) == -signal.SIGKILL, (tmp_path / f"{DIE}.out").read_text()[-3000:]
    assert leaks_after_settling(before, timeout_s=15) == [], "of the first driver"
    assert [event["epoch"] for event in told(tmp_path, DIE, "EpochEnded")] == [0]

    assert drive(tmp_path, which, FINISH) == 0, (tmp_path / f"{FINISH}.out").read_text()[-3000:]
    (launched,) = told(tmp_path, FINISH, "GenerationStarted")
    assert launched["generation"] == 1, "counted on"
    assert [event["epoch"] for event in told(tmp_path, FINISH, "EpochEnded")] == [1, 2], "it did not begin anew"
    died_behind = max(place(event) for event in told(tmp_path, DIE, "CheckpointCommitted"))
    assert died_behind[0] == 1
    assert died_behind[1] > 0, "in the middle of the second epoch"
    assert place(told(tmp_path, FINISH, "CheckpointCommitted")[0]) > died_behind, "it went on from there"
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history) == EPOCHS
    assert history[0] == told(tmp_path, DIE, "EpochEnded")[0]["row"], "with its seconds: the first driver's"

    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    named, alone = weights["named"], weights["alone"]
    assert named.keys() == alone.keys()
    assert [name for name in alone if not torch.equal(named[name], alone[name])] == []

    store = Store((tmp_path / "store").as_uri())
    assert store.list("leases") == store.list("datasets") == []
    assert f"{RUN_ID}" in store.list("runs")
    assert store.list(f"runs/{RUN_ID}/checkpoints") == []
    # The JVM outlives its Python by a second, and deletes its folders then.
    assert leaks_after_settling(before, timeout_s=15) == [], "of the second driver"
    assert [path for name in ("tmp", "local") for path in (tmp_path / name).rglob("*")] == []
