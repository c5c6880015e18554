"""`hvdspark.run` with executors in processes of their own: lost executors, GPU scheduling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.errors import DependencyError, RankFailedError
from hvdspark.launch import workers

pytestmark = pytest.mark.spark


def place() -> tuple[int, int, int, float]:
    import horovod.torch as hvd
    import torch

    context = hvdspark.context()
    total = hvd.allreduce(torch.tensor([1.0]), op=hvd.Sum, name="total").item()
    return context.rank, context.local_rank, context.local_size, total


def test_executors_of_one_machine_form_one_host(local_cluster: SparkSession, nothing_left_behind: None) -> None:
    assert hvdspark.run(place, num_workers=2, spark=local_cluster) == [(0, 0, 2, 2.0), (1, 1, 2, 2.0)]


def test_a_python_that_executors_do_not_have_is_named_before_anything_starts(
    local_cluster: SparkSession, nothing_left_behind: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_asked", set())
    monkeypatch.setattr(local_cluster.sparkContext, "pythonExec", "/no/such/python")
    started = time.monotonic()
    with pytest.raises(DependencyError, match=r"cannot be started: '/no/such/python' \(in PYSPARK_PYTHON\).*Hint"):
        hvdspark.run(place, num_workers=2, spark=local_cluster)
    assert time.monotonic() - started < 15


def kill_executor_of(rank: int, generation: int, marker: Path) -> int:
    context = hvdspark.context()
    if (context.rank, context.generation) == (rank, generation):
        marker.touch()
        executor = next(
            p for p in psutil.Process().parents() if "CoarseGrainedExecutorBackend" in " ".join(p.cmdline())
        )
        os.kill(executor.pid, signal.SIGKILL)
        time.sleep(600)
    import horovod.torch as hvd
    import torch

    for _ in range(200):
        hvd.allreduce(torch.ones(1), name="step")
        if context.generation == generation:
            time.sleep(0.1)  # be in the middle of training when the other executor goes
    return context.generation


@pytest.mark.slow
# That of rank 1 is killed below, too.
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_executor_is_named(local_cluster: SparkSession, tmp_path: Path, rank: int) -> None:
    marker = tmp_path / "died"
    with pytest.raises(RankFailedError, match=rf"rank {rank} on host .* failed: its executor was lost.*Hint") as caught:
        hvdspark.run(kill_executor_of, (rank, 0, marker), num_workers=2, spark=local_cluster)
    assert time.time() - marker.stat().st_mtime < 10
    assert (caught.value.rank, caught.value.kind) == (rank, "executor_lost")
    # Spark replaces the executor: the same session goes on.
    assert len(hvdspark.run(place, num_workers=2, spark=local_cluster)) == 2


def test_a_lost_executor_is_survived(local_cluster: SparkSession, tmp_path: Path) -> None:
    assert hvdspark.run(
        kill_executor_of, (1, 0, tmp_path / "died"), num_workers=2, spark=local_cluster, max_restarts=1
    ) == [1, 1]


_GPU_SESSION = """
import json, os, sys
from pyspark.sql import SparkSession
import hvdspark
from hvdspark.errors import HvdSparkError

script, devices = sys.argv[1], sys.argv[2:]
spark = (
    SparkSession.builder.master("local-cluster[2,1,1024]")
    .config("spark.ui.enabled", "false")
    .config("spark.worker.resource.gpu.amount", "1")
    .config("spark.worker.resource.gpu.discoveryScript", script)
    .config("spark.executor.resource.gpu.amount", "1")
    .config("spark.executor.resource.gpu.discoveryScript", script)
    .config("spark.task.resource.gpu.amount", "1")
    .getOrCreate()
)

def see():
    return os.environ.get("CUDA_VISIBLE_DEVICES", "unset"), hvdspark.context().device

for device in devices:
    try:
        print("RESULT", json.dumps(hvdspark.run(see, num_workers=2, spark=spark, device=device)))
    except HvdSparkError as error:
        print("RESULT", json.dumps(str(error)))
spark.stop()
"""


def run_with_gpus(tmp_path: Path, addresses: list[str], devices: list[str], **environment: str) -> list[Any]:
    """What ranks see for each of `devices`, in one session whose executors discover `addresses`."""
    script = tmp_path / "discover_gpus.sh"
    script.write_text(f"#!/bin/sh\necho '{json.dumps({'name': 'gpu', 'addresses': addresses})}'\n")
    script.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", _GPU_SESSION, str(script), *devices],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == len(devices), done.stderr[-3000:]
    return [json.loads(line.removeprefix("RESULT")) for line in lines]


@pytest.mark.slow
def test_ranks_see_the_gpu_that_spark_assigned(spark_home: Path, tmp_path: Path) -> None:
    auto, cpu, cuda = run_with_gpus(tmp_path, ["5"], ["auto", "cpu", "cuda"])
    # "auto" computes on the CPU here, because torch sees no GPU behind the made-up address.
    assert auto == [["5", "cpu"], ["5", "cpu"]]
    assert cpu == [["", "cpu"], ["", "cpu"]]
    assert "CUDA is not available to torch" in cuda


@pytest.mark.slow  # what is counted is tested with launch/devices.py
def test_an_executor_that_sees_some_gpus_counts_from_zero(spark_home: Path, tmp_path: Path) -> None:
    (seen,) = run_with_gpus(tmp_path, ["1"], ["auto"], CUDA_VISIBLE_DEVICES="GPU-aa,GPU-bb")
    assert seen == [["GPU-bb", "cpu"], ["GPU-bb", "cpu"]]
