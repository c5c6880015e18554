"""`make test` runs in two processes and fails when one of them does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import side_by_side

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("unit", "others", "both"),
    [(0, 0, 0), (1, 0, 1), (0, 1, 1), (0, 5, 0), (5, 0, 0), (5, 5, 5), (5, 1, 1), (2, 0, 2), (-9, 0, 1), (0, -9, 1)],
)
def test_the_status_of_two_halves(unit: int, others: int, both: int) -> None:
    assert side_by_side.status(unit, others) == both


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], {"test_unit", "test_ranks", "test_new", "test_architecture"}),
        (["-k", "test_unit"], {"test_unit"}),
        (["tests/later"], {"test_new"}),
    ],
)
def test_every_test_runs_once_and_a_failure_is_seen(tmp_path: Path, arguments: list[str], ran: set[str]) -> None:
    for path, name in (("unit/a", "unit"), ("ranks", "ranks"), ("later/b", "new"), (".", "architecture")):
        file = tmp_path / "tests" / path / f"test_{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"def test_{name}():\n    assert not 'ran'\n")
    command = [sys.executable, str(ROOT / "tests" / "side_by_side.py"), *arguments]
    environment = {**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=environment)
    failed = [line.split()[1].split("::")[1] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert (done.returncode, sorted(failed)) == (1, sorted(ran))
