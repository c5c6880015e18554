"""Synthetic Criteo, 2 million rows, 2 ranks: what a model can learn, sharded tables learn."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pyspark.sql import SparkSession

pytestmark = [pytest.mark.spark, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def click_ladder(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    for folder in ("examples", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    yield importlib.import_module("click_ladder")
    for folder in ("examples", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            sys.modules.pop(path.stem, None)


@pytest.mark.timeout(1800)
def test_auc_climbs_with_the_architecture_and_sharding_costs_nothing(
    spark: SparkSession, click_ladder: ModuleType, tmp_path: Path
) -> None:
    auc = click_ladder.ladder(spark, 2_000_000, ["lr", "fm", "dcn_v2", "dlrm"], tmp_path)
    assert auc["lr"] < auc["fm"] < auc["dcn_v2"]
    assert abs(auc["dlrm"] - auc["dlrm unsharded"]) <= 0.004
    assert auc["dlrm"] >= auc["reachable"] - 0.01
