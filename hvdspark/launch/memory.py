"""How much memory a rank may use, asked before any rank is launched.

Sizes of Spark's settings are in MiB unless they say otherwise; everything here is in bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from hvdspark.errors import ClusterError, ConfigurationError
from hvdspark.launch.session import conf_value
from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_MIB = 1 << 20
_GIB = 1 << 30
# Measured on Linux, torch 2.13: a rank with torch, Horovod and Petastorm's reader 0.41 GiB, the barrier task beside it
# 0.11; the rest is for batches and row groups that are being read and for dense layers.
_RANK_BYTES = int(0.7 * _GIB)
# The same rank's address space: 1.6 GiB, because of mapped libraries and what malloc reserves for each thread.
_RANK_ADDRESS_BYTES = int(1.75 * _GIB)
# Without what malloc reserves (MALLOC_ARENA_MAX=1) and with few threads, libraries and a small module need 1.2 to 1.3.
_LEAST_ADDRESS_BYTES = int(1.5 * _GIB)
_OVERHEAD = "spark.executor.memoryOverhead"
_PYSPARK_MEMORY = "spark.executor.pyspark.memory"
_KEYS = (
    "spark.master",
    _OVERHEAD,
    _PYSPARK_MEMORY,
    "spark.driver.memory",
    "spark.executor.cores",
    "spark.executor.memory",
    "spark.executor.memoryOverheadFactor",
    "spark.executor.minMemoryOverhead",
    "spark.executor.resource.gpu.amount",
    "spark.kubernetes.memoryOverheadFactor",
    "spark.kubernetes.resource.type",
    "spark.task.cpus",
    "spark.task.resource.gpu.amount",
    "spark.yarn.isPython",
)
_UNITS = {"": _MIB, "b": 1, "k": 1 << 10, "m": _MIB, "g": _GIB, "t": 1 << 40, "p": 1 << 50}


@dataclass(frozen=True)
class MemoryBudget:
    """Memory in bytes, and what one would raise to have more.

    Attributes:
        setting: a Spark setting, "the cgroup's memory limit" or "this machine's memory".
    """

    bytes: int
    setting: str


def rank_memory(spark: SparkSession, num_workers: int) -> MemoryBudget | None:
    """What one of `num_workers` ranks of this session may use for embedding tables; None where nobody can say."""
    conf = {key: value for key in _KEYS if (value := conf_value(spark, key))}
    return memory_budget(conf, num_workers, machine_memory() if session_of(spark).runs_here() else None)


def memory_budget(conf: Mapping[str, str], num_workers: int, machine: MemoryBudget | None) -> MemoryBudget | None:
    """The tightest of the limits that hold for a rank, less what a rank needs without any table. Pure.

    - YARN and Kubernetes kill a container that outgrows heap + spark.executor.memoryOverhead (+
      spark.executor.pyspark.memory). The heap is the JVM's, so the ranks of an executor share the rest; as many ranks
      as it has task slots.
    - With spark.executor.pyspark.memory, on any master, Spark limits the address space of each of its Python workers
      (RLIMIT_AS), and a rank inherits that from its barrier task. It is the setting over spark.executor.cores,
      whatever spark.task.cpus is (PythonRunner.scala).
    - In local mode the ranks share the machine with the driver's heap.
    - Executors of a standalone cluster have no limit that the driver could know.

    What is kept back is an estimate, and memory that the JVM may take is often not taken. A refusal has to be right, so
    at least half of a rank's share is granted, except of the address space, which is nobody else's.

    Args:
        conf: the settings of the application that are set.
        machine: memory of the machine that all ranks run on, where that is the driver's; else None.

    Raises:
        ConfigurationError: a setting that Spark itself could not read.
    """
    master = conf.get("spark.master", "")
    limits = []
    if master == "yarn" or master.startswith("k8s://"):
        share = _container_share(conf, num_workers, kubernetes=master != "yarn")
        limits.append(MemoryBudget(_less(share, _RANK_BYTES), _OVERHEAD))
    elif machine is not None:
        share = _less(machine.bytes, _size(conf, "spark.driver.memory", "1g")) // num_workers
        limits.append(MemoryBudget(_less(share, _RANK_BYTES), machine.setting))
    if _PYSPARK_MEMORY in conf:
        limit = int(_size(conf, _PYSPARK_MEMORY, "") / _number(conf, "spark.executor.cores"))
        limits.append(MemoryBudget(max(0, limit - _RANK_ADDRESS_BYTES), _PYSPARK_MEMORY))
    return min(limits, key=_bytes) if limits else None


def check_address_space(spark: SparkSession) -> None:
    """Raise ClusterError where Spark limits the address space of Python workers to less than any rank needs.

    Such a rank would end in a crash of native code that cannot start a thread or map a library.
    """
    conf = {key: value for key in (_PYSPARK_MEMORY, "spark.executor.cores") if (value := conf_value(spark, key))}
    if _PYSPARK_MEMORY not in conf:
        return
    cores = _number(conf, "spark.executor.cores")
    limit = int(_size(conf, _PYSPARK_MEMORY, "") / cores)
    if limit < _LEAST_ADDRESS_BYTES:
        raise ClusterError(
            f"Spark limits the address space of each Python worker to {limit / _GIB:.2g} GiB, and a rank needs "
            f"{_LEAST_ADDRESS_BYTES / _GIB:.2g} GiB at least, most of it for the libraries of torch",
            value=conf[_PYSPARK_MEMORY],
            where=_PYSPARK_MEMORY,
            hint=f"unset it, or set it to {math.ceil(cores * 2 * _RANK_ADDRESS_BYTES / _GIB)}g (it is divided by "
            "spark.executor.cores); with GPUs unset it, because CUDA reserves address space by the size of the memory",
        )


def machine_memory(root: Path = Path("/")) -> MemoryBudget:
    """Memory of the machine or container that this process runs in. `root` is where /proc and /sys are."""
    physical = MemoryBudget(psutil.virtual_memory().total, "this machine's memory")
    limits = [MemoryBudget(limit, "the cgroup's memory limit") for limit in _cgroup_limits(root)]
    return min([physical, *limits], key=_bytes)


def _container_share(conf: Mapping[str, str], num_workers: int, kubernetes: bool) -> int:
    """What a container has beside the heap for each of the ranks that may share it."""
    least = _size(conf, "spark.executor.minMemoryOverhead", "384m")
    if _OVERHEAD in conf:
        room = _size(conf, _OVERHEAD, "")
    else:
        # Kubernetes' own key carries 0.4 into the driver's settings where Spark submitted a Python program in cluster
        # mode. In client mode, as in a notebook, pods are made with 0.1 (BasicExecutorFeatureStep.scala).
        deprecated = "spark.kubernetes.memoryOverheadFactor"
        default = _number(conf, deprecated, 0.1) if kubernetes else 0.1
        factor = _number(conf, "spark.executor.memoryOverheadFactor", default)
        room = max(int(factor * _size(conf, "spark.executor.memory", "1g")), least)
    # The least overhead is Spark's own estimate of what the JVM uses beside its heap.
    room = _less(room, least)
    # Counted only for what spark-submit knows to be a Python program: not in client mode on Kubernetes.
    python = {"spark.kubernetes.resource.type": "python"} if kubernetes else {"spark.yarn.isPython": "true"}
    if python.items() <= conf.items() and _PYSPARK_MEMORY in conf:
        room += _size(conf, _PYSPARK_MEMORY, "")
    return room // min(num_workers, _slots(conf))


def _slots(conf: Mapping[str, str]) -> int:
    """Tasks that one executor may run at the same time."""
    slots = _number(conf, "spark.executor.cores") / _number(conf, "spark.task.cpus")
    gpus, wanted = "spark.executor.resource.gpu.amount", "spark.task.resource.gpu.amount"
    if gpus in conf and wanted in conf:
        slots = min(slots, _number(conf, gpus) / _number(conf, wanted))
    return max(1, int(slots))


def _bytes(limit: MemoryBudget) -> int:
    return limit.bytes


def _less(total: int, kept_back: int) -> int:
    return max(total - kept_back, total // 2)


def _size(conf: Mapping[str, str], key: str, default: str) -> int:
    """Bytes of "2g", "2GB", "2048m" or "2048", the ways in which Spark takes them (JavaUtils.byteStringAs)."""
    text = conf.get(key, default)
    match = re.fullmatch(r"(\d+)\s*(b|[kmgtp]b?|)", text.strip().lower())
    if match is None:
        raise ConfigurationError("not a size", value=text, where=key, hint="like 512m or 4g")
    return int(match[1]) * _UNITS[match[2][:1]]


def _number(conf: Mapping[str, str], key: str, default: float = 1) -> float:
    text = conf.get(key, str(default))
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if number <= 0:
        raise ConfigurationError("not a number above 0", value=text, where=key)
    return number


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Limits of this process's control group and of all groups around it, cgroup v1 and v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # A container may see its own group as the mount's root, under a path that is only known outside ("/../x" too).
        folder = base.joinpath(*(part for part in path.split("/") if part != ".."))
        for group in (folder, *folder.parents):
            if group.is_relative_to(base):
                try:
                    yield int((group / name).read_text())
                except (OSError, ValueError):  # not visible here; "max" is no limit
                    continue
