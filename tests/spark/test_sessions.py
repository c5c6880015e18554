"""The two sessions of the test suite."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def same(batches: Iterator[Any]) -> Iterator[Any]:
    yield from batches


def test_python_workers_import_test_modules(spark: SparkSession, nothing_left_behind: None) -> None:
    assert spark.range(3).mapInArrow(same, "id long", barrier=True).count() == 3


def listen(batches: Iterator[Any]) -> Iterator[Any]:
    globals()["kept"] = socket.create_server(("127.0.0.1", 0))
    yield from batches


def test_port_left_open_in_a_reused_worker_is_seen(spark: SparkSession) -> None:
    from tests.footprint import Footprint, leaks_after_settling

    spark.range(2).mapInArrow(same, "id long").collect()
    before = Footprint.take()
    spark.range(0, 1, 1, 1).mapInArrow(listen, "id long").collect()
    (leak,) = leaks_after_settling(before, timeout_s=0.5)
    assert leak.startswith("port ")


def test_local_cluster_has_two_executors(local_cluster: SparkSession) -> None:
    def pid(batches: Iterator[Any]) -> Iterator[Any]:
        import os

        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"pid": [os.getppid()]})

    rows = local_cluster.range(0, 2, 1, 2).mapInArrow(pid, "pid long", barrier=True).collect()
    assert len({row.pid for row in rows}) == 2
