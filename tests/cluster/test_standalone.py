"""A standalone cluster on this host: a master and two workers, one of which is killed while a fit trains there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos.verdict import differences
from tests.cluster.fits import FIT, begin, on_cluster
from tests.cluster.standalone import Host, kill_tree, standalone

pytestmark = [pytest.mark.spark, pytest.mark.chaos, pytest.mark.timeout(1200)]


def test_a_killed_worker_changes_nothing(spark_home: Path, tmp_path: Path, nothing_left_behind: None) -> None:
    shared = tmp_path / "shared"
    calm = begin(tmp_path / "calm", shared, {"spark.master": "local[2]"}, spark_home)
    try:
        assert calm.result(500) == {"ok": True, "error": ""}
    finally:
        calm.end()
    with standalone(spark_home, tmp_path / "cluster", [Host(), Host()], cores=2) as cluster:
        struck = begin(tmp_path / "struck", shared, on_cluster(cluster.url), spark_home, pause_s=0.1, maxRestarts=3)
        try:
            struck.wait_for_steps(0, FIT.steps + 5, wait_s=300)
            kill_tree(cluster.workers[1].pid)
            killed_s = time.monotonic()
            cluster.wait_for_workers(1)
            struck.wait_for_steps(1, 1, wait_s=300)
            recovered_s = time.monotonic() - killed_s
            said = struck.result(500)
            print(struck.timeline(killed_s))
            assert said == {"ok": True, "error": ""}, struck.output()[-5000:]
        finally:
            struck.end()
    assert differences(calm.weights(), struck.weights()) == []
    assert len(struck.events("generation")) == 2
    assert recovered_s <= 15
