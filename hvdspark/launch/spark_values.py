"""What a Python worker of Spark has and a rank gets from its task: files and broadcast variables."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def receive(files: str, broadcasts: Mapping[str, str]) -> None:
    """Make `SparkFiles` and the broadcast variables of a program work in this process, before it is unpickled.

    Args:
        files: folder of `SparkFiles`.
        broadcasts: file of each broadcast variable, by id.
    """
    from pyspark import Broadcast, SparkFiles

    SparkFiles._root_directory, SparkFiles._is_running_on_worker = files, True
    registry = sys.modules[Broadcast.__module__]._broadcastRegistry  # in pyspark.core since 4.0
    registry.update({int(key): Broadcast(path=path) for key, path in broadcasts.items()})
