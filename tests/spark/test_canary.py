"""Values of rows, and secrets of runs, are in no log, error, event, MLflow run, page of Spark or file left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mlflow_server import mlflow_server
from tests.spark.canary_fit import PLANTED, SECRET, VALUE

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.spark, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, spark_home: Path) -> tuple[Path, str]:
    """A folder in which a program has worked, and what it printed."""
    folder = tmp_path_factory.mktemp("canary")
    for name in ("events", "tmp", "local", "mlflow"):
        (folder / name).mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    with mlflow_server(folder / "mlflow") as server, open(folder / "printed", "wb") as said:
        command = [sys.executable, "-m", "tests.spark.canary_fit", str(folder), server.uri]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=880)
    printed = (folder / "printed").read_text(errors="replace")
    assert done.returncode == 0, printed[-5000:]
    return folder, printed


def test_it_failed_where_it_should(left: tuple[Path, str]) -> None:
    _, printed = left
    assert "DID NOT FAIL" not in printed
    assert printed.count("failed as it should") == 8
    assert printed.count("event ") > 10
    assert "run [10, 10]" in printed


@pytest.mark.parametrize("planted", [*PLANTED, SECRET, VALUE])
def test_nothing_of_it_was_said(left: tuple[Path, str], planted: str) -> None:
    _, printed = left
    assert not [line[:1000] for line in printed.splitlines() if planted in line]


@pytest.mark.parametrize("planted", [*PLANTED, SECRET, VALUE])
@pytest.mark.parametrize("place", ["mlflow", "events", "tmp"])
def test_nothing_of_it_is_kept(left: tuple[Path, str], planted: str, place: str) -> None:
    folder, _ = left
    files = [path for path in (folder / place).rglob("*") if path.is_file()]
    assert files or place == "tmp"
    lines = [(path.name, line) for path in files for line in path.read_bytes().splitlines()]
    assert not [(name, line[:500]) for name, line in lines if planted.encode() in line]
