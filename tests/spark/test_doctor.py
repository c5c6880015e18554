"""The doctor on real sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from hvdspark.doctor import diagnose, gather, healthy

pytestmark = pytest.mark.spark


def test_active_session_is_looked_at_and_kept(spark: SparkSession, store_uri: str, nothing_left_behind: None) -> None:
    facts = gather(store=store_uri)
    assert healthy(diagnose(facts)), diagnose(facts)
    assert facts.session is not None
    assert facts.session.slots == spark.sparkContext.defaultParallelism
    assert len(facts.session.workers) == facts.session.slots
    assert facts.session.busy == 0
    (memory,) = [row for row in diagnose(facts) if row.name == "Memory of a rank"]
    assert " GiB of it for embedding tables, with 3 ranks (" in memory.found
    assert spark.range(2).count() == 2


@pytest.mark.slow
def test_workers_without_the_packages_are_named(spark_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path(sys.executable).parent / "no-such-python"
    monkeypatch.setenv("PYSPARK_PYTHON", str(python))
    command = [sys.executable, "-m", "hvdspark", "doctor", "--master", "local[1]"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.returncode == 1
    assert "ok       Session             local[1]" in result.stdout
    assert "ok       Free slots          1 of 1" in result.stdout
    assert "BROKEN   Python workers" in result.stdout
    assert f"export PYSPARK_PYTHON={sys.executable}" in result.stdout


def test_session_that_does_not_start(spark_home: Path) -> None:
    command = [sys.executable, "-m", "hvdspark", "doctor", "--master", "nonsense"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert result.returncode == 1
    assert "BROKEN   Session" in result.stdout
    assert "[JAVA_GATEWAY_EXITED]" in result.stdout
    assert "Master must" in result.stderr
