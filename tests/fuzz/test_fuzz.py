"""What is read from stores, sockets and pipes, mutated: clean errors, or what was said; see `runner`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.runner import TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent


def run(seed: int, count: int, limit_s: float) -> dict[str, Any]:
    """What the fuzzer says at its end. It has a process of its own, which may crash and has little memory."""
    command = [sys.executable, "-m", "tests.fuzz.runner", "--seed", str(seed), "--count", str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [result for result in results if "failure" in result]
    assert not failed, json.dumps(failed[:5], indent=1)
    assert done.returncode == 0, f"the process ended after: {done.stderr[-3000:]}"
    found: dict[str, Any] = results[-1]
    return found


def test_a_few_mutated_inputs() -> None:
    found = run(seed=0, count=10 * len(TARGETS), limit_s=110)
    assert sum(found["verdicts"].values()) == 10 * len(TARGETS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [11, 12])
def test_five_hundred_mutated_inputs(seed: int) -> None:
    found = run(seed=seed, count=560, limit_s=1100)
    assert sum(found["verdicts"].values()) >= 500
    for target in ("saved model", "parquet"):  # it was fuzzed, not ignored
        assert found["verdicts"][f"{target}: refused"] > 20


@pytest.mark.parametrize("target", ["leases", "channel", "specs"])
def test_the_same_seed_gives_the_same_inputs(target: str, tmp_path: Path) -> None:
    words = []
    for turn in range(2):
        (tmp_path / str(turn)).mkdir()
        fuzzed = TARGETS[target](tmp_path / str(turn))  # type: ignore[call-arg]
        words.append([fuzzed.attempt(random.Random(f"7/{number}"))[0] for number in range(5)])
        fuzzed.close()
    assert words[0] == words[1]
