"""Death at each boundary of saving a checkpoint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def test_a_death_at_each_boundary_of_a_save_changes_nothing() -> None:
    command = [sys.executable, "-m", "tests.chaos.boundaries", "--save", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [line for line in lines if line["outcome"] != "ok"]
    assert not wrong, json.dumps(wrong, indent=1)
    assert done.returncode == 0, done.stderr[-3000:]
    ends = {(line["what"].rpartition("/")[2], line["when"]) for line in lines}
    assert {("manifest.json", "before"), ("manifest.json", "after"), ("weights.safetensors", "before")} <= ends
    assert {line["rank"] for line in lines} == {0, 1}
    assert {place for line in lines for place in re.findall(r"epoch-\d+-step-\d+", line["what"])} == {
        "epoch-00000-step-00000006"
    }
