"""How much memory a rank may use, asked before any rank is launched.

Sizes of Spark's settings are in MiB unless they say otherwise; everything here is in bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hvdspark.errors import ClusterError, ConfigurationError
from hvdspark.launch.budget import RANK_BYTES, RANK_MEMORY, UNLIMITED, MemoryBudget, MemoryTerms, less, rank_share
from hvdspark.launch.limit import PYSPARK_MEMORY
from hvdspark.launch.machine import machine_memory
from hvdspark.launch.session import conf_value
from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_MIB = 1 << 20
_GIB = 1 << 30
# A rank's address space: 1.6 GiB, because of mapped libraries and what malloc reserves for each thread.
_RANK_ADDRESS_BYTES = int(1.75 * _GIB)
# Without what malloc reserves (MALLOC_ARENA_MAX=1) and with few threads, libraries and a small module need 1.2 to 1.3.
_LEAST_ADDRESS_BYTES = int(1.5 * _GIB)
_LEAST_BYTES = int(0.75 * _GIB)
_OVERHEAD = "spark.executor.memoryOverhead"
_KEYS = (
    "spark.master",
    _OVERHEAD,
    PYSPARK_MEMORY,
    "spark.driver.memory",
    "spark.executor.cores",
    "spark.executor.memory",
    "spark.executor.memoryOverheadFactor",
    "spark.executor.minMemoryOverhead",
    "spark.executor.resource.gpu.amount",
    RANK_MEMORY,
    "spark.kubernetes.memoryOverheadFactor",
    "spark.kubernetes.resource.type",
    "spark.task.cpus",
    "spark.task.resource.gpu.amount",
    "spark.yarn.isPython",
)
_UNITS = {"": _MIB, "b": 1, "k": 1 << 10, "m": _MIB, "g": _GIB, "t": 1 << 40, "p": 1 << 50}


def rank_memory(spark: SparkSession, num_workers: int) -> MemoryBudget | None:
    """What one of `num_workers` ranks of this session may use for embedding tables; None where nobody can say."""
    here = machine_memory() if session_of(spark).runs_here() else None
    return memory_budget(_settings(spark), num_workers, here)


def memory_terms(spark: SparkSession, num_workers: int) -> MemoryTerms:
    """What this session says of the memory of each of `num_workers` ranks, for their tasks."""
    conf = _settings(spark)
    heap = _size(conf, "spark.executor.memory", "1g")
    return MemoryTerms(conf.get(RANK_MEMORY) != UNLIMITED, rank_memory(spark, num_workers), heap)


def _settings(spark: SparkSession) -> dict[str, str]:
    return {key: value for key in _KEYS if (value := conf_value(spark, key))}


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
    - spark.hvdspark.rankMemory is the memory of a rank in place of all that follows from containers or the machine.

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
    if conf.get(RANK_MEMORY, UNLIMITED) != UNLIMITED:
        limits.append(MemoryBudget(_own_size(conf) - RANK_BYTES, RANK_MEMORY))
    elif master == "yarn" or master.startswith("k8s://"):
        share = _container_share(conf, num_workers, kubernetes=master != "yarn")
        limits.append(MemoryBudget(less(share, RANK_BYTES), _OVERHEAD))
    elif machine is not None:
        limits.append(rank_share(machine, _size(conf, "spark.driver.memory", "1g"), num_workers))
    if PYSPARK_MEMORY in conf:
        limit = int(_size(conf, PYSPARK_MEMORY, "") / _number(conf, "spark.executor.cores"))
        limits.append(MemoryBudget(max(0, limit - _RANK_ADDRESS_BYTES), PYSPARK_MEMORY))
    return min(limits, key=_bytes) if limits else None


def check_address_space(spark: SparkSession) -> None:
    """Raise ClusterError where Spark limits the address space of Python workers to less than any rank needs.

    Such a rank would end in a crash of native code that cannot start a thread or map a library.
    """
    conf = {key: value for key in (PYSPARK_MEMORY, "spark.executor.cores") if (value := conf_value(spark, key))}
    if PYSPARK_MEMORY not in conf:
        return
    cores = _number(conf, "spark.executor.cores")
    limit = int(_size(conf, PYSPARK_MEMORY, "") / cores)
    if limit < _LEAST_ADDRESS_BYTES:
        raise ClusterError(
            f"Spark limits the address space of each Python worker to {limit / _GIB:.2g} GiB, and a rank needs "
            f"{_LEAST_ADDRESS_BYTES / _GIB:.2g} GiB at least, most of it for the libraries of torch",
            value=conf[PYSPARK_MEMORY],
            where=PYSPARK_MEMORY,
            hint=f"unset it, or set it to {math.ceil(cores * 2 * _RANK_ADDRESS_BYTES / _GIB)}g (it is divided by "
            "spark.executor.cores); with GPUs unset it, because CUDA reserves address space by the size of the memory",
        )


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
    room = less(room, least)
    # Counted only for what spark-submit knows to be a Python program: not in client mode on Kubernetes.
    python = {"spark.kubernetes.resource.type": "python"} if kubernetes else {"spark.yarn.isPython": "true"}
    if python.items() <= conf.items() and PYSPARK_MEMORY in conf:
        room += _size(conf, PYSPARK_MEMORY, "")
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


def _own_size(conf: Mapping[str, str]) -> int:
    """Bytes of spark.hvdspark.rankMemory."""
    size = _size(conf, RANK_MEMORY, "")
    if size < _LEAST_BYTES:
        raise ConfigurationError(
            "no rank runs in so little memory",
            value=conf[RANK_MEMORY],
            where=RANK_MEMORY,
            hint=f"1g or more, or {UNLIMITED}; torch and Horovod alone take half of it",
        )
    return size


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
