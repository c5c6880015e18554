"""What a target of the Makefile would do in a fresh clone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("target", "builds"), [("lint", False), ("fmt", False), ("type", False), ("test", True)])
def test_what_needs_no_horovod_does_not_build_it(tmp_path: Path, target: str, builds: bool) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for needed in (".ci/system-check", "requirements.txt", "pyproject.toml", "hvdspark/horovod_build.py"):
        (tmp_path / needed).parent.mkdir(exist_ok=True)
        (tmp_path / needed).touch()
    command = ["make", "--dry-run", "--directory", str(tmp_path), target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.stdout
    assert ("install-horovod" in done.stdout) == builds
