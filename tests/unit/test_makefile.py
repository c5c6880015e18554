"""What a target of the Makefile would do in a fresh clone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("target", "builds"), [("lint", False), ("fmt", False), ("type", False), ("test", True), ("coverage", True)]
)
def test_what_needs_no_horovod_does_not_build_it(tmp_path: Path, target: str, builds: bool) -> None:
    commands = _commands(tmp_path, target)
    assert "pip install" in commands
    assert ("install-horovod" in commands) == builds


@pytest.mark.parametrize(("target", "traced"), [("test", False), ("coverage", True)])
def test_coverage_has_a_target_of_its_own(tmp_path: Path, target: str, traced: bool) -> None:
    commands = _commands(tmp_path, target)
    assert ("coverage run -m pytest" in commands, "coverage report" in commands) == (traced, traced)


def _commands(clone: Path, target: str) -> str:
    shutil.copy(ROOT / "Makefile", clone)
    for needed in (".ci/system-check", "requirements.txt", "pyproject.toml", "setup.py", "hvdspark/horovod_build.py"):
        (clone / needed).parent.mkdir(exist_ok=True)
        (clone / needed).touch()
    command = ["make", "--dry-run", "--directory", str(clone), target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["SPARK_HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"])
def test_the_callers_environment_does_not_reach_what_is_run(name: str) -> None:
    command = ["make", "--silent", "--directory", str(ROOT), "--eval", "shown: ; @env", "shown"]
    environment = {**os.environ, name: "/of/the/caller"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert "SPARK_LOCAL_IP=127.0.0.1" in done.stdout.splitlines()
    assert not [line for line in done.stdout.splitlines() if line.startswith(f"{name}=")]


def test_a_commit_is_held_to_what_make_lint_and_type_run() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = repo["hooks"]
    assert repo["repo"] == "local", "nothing is installed beside the one environment"
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)
    entries = [hook["entry"].split() for hook in hooks]
    assert entries == [["make", "--no-print-directory", target] for target in ("lint", "type")]
