from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from hvdspark.errors import ClusterError, ConfigurationError
from hvdspark.launch.budget import RANK_MEMORY, MemoryBudget, MemoryTerms
from hvdspark.launch.machine import machine_memory
from hvdspark.launch.memory import check_address_space, memory_budget, memory_terms, rank_memory

MIB = 1 << 20
GIB = 1 << 30
OVERHEAD = "spark.executor.memoryOverhead"
PYSPARK = "spark.executor.pyspark.memory"
RANK = int(0.7 * GIB)  # kept for interpreter, torch and batches
ADDRESS = int(1.75 * GIB)  # and of the address space
JVM = 384 * MIB  # Spark's estimate of what the JVM needs beside its heap
MACHINE = MemoryBudget(64 * GIB, "this machine's memory")
CGROUP = MemoryBudget(16 * GIB, "the cgroup's memory limit")

YARN = {"spark.master": "yarn", "spark.yarn.isPython": "true"}
K8S = {"spark.master": "k8s://https://kubernetes.default:443"}
STANDALONE = {"spark.master": "spark://host:7077"}
LOCAL = {"spark.master": "local[4]"}
PYTHON_POD = {"spark.kubernetes.resource.type": "python"}


@pytest.mark.parametrize(
    ("conf", "num_workers", "machine", "expected"),
    [
        # Containers: the overhead, set or derived from the heap.
        ({**YARN, OVERHEAD: "8g"}, 2, None, (8 * GIB - JVM - RANK, OVERHEAD)),
        ({**YARN, OVERHEAD: "8192"}, 2, None, (8 * GIB - JVM - RANK, OVERHEAD)),
        ({**YARN, "spark.executor.memory": "40g"}, 2, None, (4 * GIB - JVM - RANK, OVERHEAD)),
        (
            {**YARN, "spark.executor.memory": "40g", "spark.executor.memoryOverheadFactor": "0.5"},
            2,
            None,
            (20 * GIB - JVM - RANK, OVERHEAD),
        ),
        ({**K8S, OVERHEAD: "8g"}, 2, None, (8 * GIB - JVM - RANK, OVERHEAD)),
        ({**K8S, "spark.executor.memory": "40g"}, 2, None, (4 * GIB - JVM - RANK, OVERHEAD)),
        (
            {**K8S, "spark.executor.memory": "40g", "spark.kubernetes.memoryOverheadFactor": "0.4"},
            2,
            None,
            (16 * GIB - JVM - RANK, OVERHEAD),
        ),
        (
            {**YARN, "spark.executor.memory": "40g", "spark.kubernetes.memoryOverheadFactor": "0.4"},
            2,
            None,
            (4 * GIB - JVM - RANK, OVERHEAD),
        ),
        (
            {**YARN, "spark.executor.memory": "10g", "spark.executor.minMemoryOverhead": "3g"},
            2,
            None,
            (3 * GIB // 2 - RANK, OVERHEAD),  # half is granted whatever the JVM needs
        ),
        # Nothing set at all: 384 MiB, of which a quarter is for tables.
        (YARN, 2, None, (96 * MIB, OVERHEAD)),
        (K8S, 2, None, (96 * MIB, OVERHEAD)),
        # Ranks that share an executor.
        ({**YARN, OVERHEAD: "9g", "spark.executor.cores": "4"}, 8, None, ((9 * GIB - JVM) // 4 - RANK, OVERHEAD)),
        ({**YARN, OVERHEAD: "9g", "spark.executor.cores": "4"}, 2, None, ((9 * GIB - JVM) // 2 - RANK, OVERHEAD)),
        (
            {**YARN, OVERHEAD: "9g", "spark.executor.cores": "4", "spark.task.cpus": "4"},
            8,
            None,
            (9 * GIB - JVM - RANK, OVERHEAD),
        ),
        (
            {
                **K8S,
                OVERHEAD: "9g",
                "spark.executor.cores": "8",
                "spark.executor.resource.gpu.amount": "1",
                "spark.task.resource.gpu.amount": "0.5",
            },
            8,
            None,
            ((9 * GIB - JVM) // 2 - RANK, OVERHEAD),
        ),
        # Spark limits the address space of Python workers, and ranks inherit it.
        ({**YARN, OVERHEAD: "8g", PYSPARK: "6g"}, 2, None, (6 * GIB - ADDRESS, PYSPARK)),
        ({**STANDALONE, PYSPARK: "6g"}, 2, None, (6 * GIB - ADDRESS, PYSPARK)),
        (
            {**YARN, PYSPARK: "24g", "spark.executor.cores": "4", "spark.task.cpus": "4"},
            2,
            None,
            (6 * GIB - ADDRESS, PYSPARK),
        ),
        ({**STANDALONE, PYSPARK: "1g"}, 2, None, (0, PYSPARK)),
        ({**LOCAL, PYSPARK: "6g"}, 2, MACHINE, (6 * GIB - ADDRESS, PYSPARK)),
        ({**LOCAL, PYSPARK: "60g"}, 2, CGROUP, (15 * GIB // 2 - RANK, CGROUP.setting)),
        # A pod of a driver that is not in the cluster has no room for it.
        ({**K8S, OVERHEAD: "2g", PYSPARK: "20g"}, 2, None, (2 * GIB - JVM - RANK, OVERHEAD)),
        ({**K8S, **PYTHON_POD, OVERHEAD: "2g", PYSPARK: "20g"}, 2, None, (20 * GIB - ADDRESS, PYSPARK)),
        # All ranks and the driver's heap on one machine.
        (LOCAL, 2, MACHINE, (63 * GIB // 2 - RANK, MACHINE.setting)),
        (LOCAL, 3, CGROUP, (15 * GIB // 3 - RANK, CGROUP.setting)),
        ({**LOCAL, "spark.driver.memory": "8g"}, 2, CGROUP, (4 * GIB - RANK, CGROUP.setting)),
        ({**LOCAL, "spark.driver.memory": "16g"}, 2, CGROUP, (4 * GIB - RANK, CGROUP.setting)),
        # What the user says is taken in place of it.
        ({**LOCAL, RANK_MEMORY: "3g"}, 2, CGROUP, (3 * GIB - RANK, RANK_MEMORY)),
        ({**YARN, OVERHEAD: "8g", RANK_MEMORY: "20g"}, 2, None, (20 * GIB - RANK, RANK_MEMORY)),
        ({**STANDALONE, RANK_MEMORY: "20g", PYSPARK: "6g"}, 2, None, (6 * GIB - ADDRESS, PYSPARK)),
        ({**LOCAL, RANK_MEMORY: "unlimited"}, 2, MACHINE, (63 * GIB // 2 - RANK, MACHINE.setting)),
        # Nobody knows.
        (STANDALONE, 2, None, None),
        ({**STANDALONE, OVERHEAD: "1g"}, 2, None, None),
        ({"spark.master": "local-cluster[2,1,1024]"}, 2, None, None),
        ({}, 2, None, None),
    ],
)
def test_memory_budget(
    conf: dict[str, str], num_workers: int, machine: MemoryBudget | None, expected: tuple[int, str] | None
) -> None:
    assert memory_budget(conf, num_workers, machine) == (None if expected is None else MemoryBudget(*expected))


@pytest.mark.parametrize(
    ("text", "size"),
    [("2048", 2 * GIB), ("2048m", 2 * GIB), ("2G", 2 * GIB), ("2gb", 2 * GIB), ("2147483648b", 2 * GIB)],
)
def test_sizes_are_spelled_as_spark_takes_them(text: str, size: int) -> None:
    budget = memory_budget({**STANDALONE, PYSPARK: text}, 1, None)
    assert budget == MemoryBudget(size - ADDRESS, PYSPARK)


@pytest.mark.parametrize(
    ("key", "value"), [(OVERHEAD, "much"), (OVERHEAD, "1.5g"), ("spark.executor.cores", "0"), ("spark.task.cpus", "x")]
)
def test_settings_that_spark_cannot_read_are_named(key: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{value}' \\(in {key}\\)"):
        memory_budget({**YARN, key: value}, 2, None)


class Session:
    """Stands in for a session; its settings are all that is asked."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.sparkContext: Any = SimpleNamespace(master=settings["spark.master"], getConf=lambda: settings)
        self.conf = self

    def get(self, key: str, default: str) -> str:
        return default


def test_a_session_is_asked_for_its_settings() -> None:
    session: Any = Session({**YARN, OVERHEAD: "8g", "spark.executor.cores": "2", "spark.sql.shuffle.partitions": "9"})
    assert rank_memory(session, 4) == MemoryBudget((8 * GIB - JVM) // 2 - RANK, OVERHEAD)


def test_tasks_are_told_what_the_session_knows() -> None:
    known: Any = Session({**YARN, OVERHEAD: "8g"})
    assert memory_terms(known, 1) == MemoryTerms(budget=MemoryBudget(8 * GIB - JVM - RANK, OVERHEAD), heap=GIB)
    nobody: Any = Session({**STANDALONE, "spark.executor.memory": "4g"})
    assert memory_terms(nobody, 1) == MemoryTerms(heap=4 * GIB)
    unwanted: Any = Session({**STANDALONE, RANK_MEMORY: "unlimited"})
    assert not memory_terms(unwanted, 1).limited


@pytest.mark.parametrize("text", ["500m", "much", "0"])
def test_no_rank_runs_in_next_to_nothing(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{text}' \\(in {RANK_MEMORY}\\)"):
        memory_budget({**LOCAL, RANK_MEMORY: text}, 1, MACHINE)


def test_only_in_local_mode_the_driver_s_machine_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvdspark.launch.memory.machine_memory", lambda: MACHINE)
    here: Any = Session(LOCAL)
    elsewhere: Any = Session(STANDALONE)
    assert rank_memory(here, 2) == MemoryBudget(63 * GIB // 2 - RANK, MACHINE.setting)
    assert rank_memory(elsewhere, 2) is None


@pytest.fixture(autouse=True)
def physical(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB))
    return 64 * GIB


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"memory.max": "17179869184\n"}, 16),
        ("0::/", {"memory.max": "max\n"}, 64),
        ("0::/user/me", {"user/memory.max": "8589934592", "user/me/memory.max": "max", "memory.max": "max"}, 8),
        ("0::/user/me", {"user/memory.max": "17179869184", "user/me/memory.max": "8589934592"}, 8),
        ("0::/../pod", {"memory.max": "8589934592"}, 8),
        ("4:cpu,memory:/docker/x\n0::/", {"memory/docker/x/memory.limit_in_bytes": "8589934592"}, 8),
        ("4:memory:/docker/x", {"memory/memory.limit_in_bytes": "8589934592"}, 8),  # the host's path
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 64),  # how v1 spells "max"
        ("4:cpu:/x", {"cpu/x/memory.max": "1"}, 64),
        (None, {}, 64),
    ],
)
def test_machine_memory(groups: str | None, files: dict[str, str], limit: int, tmp_path: Path) -> None:
    if groups is not None:
        files = {**{f"sys/fs/cgroup/{name}": text for name, text in files.items()}, "proc/self/cgroup": groups}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    setting = "this machine's memory" if limit == 64 else "the cgroup's memory limit"
    assert machine_memory(tmp_path) == MemoryBudget(limit * GIB, setting)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({}, None),
        ({PYSPARK: "1g"}, "4g"),
        ({PYSPARK: "1535m"}, "4g"),
        ({PYSPARK: "1536m"}, None),
        ({PYSPARK: "4g", "spark.executor.cores": "4"}, "14g"),
        ({PYSPARK: "6g", "spark.executor.cores": "4"}, None),
    ],
)
def test_an_address_space_in_which_no_rank_can_live_is_refused(settings: dict[str, str], hint: str | None) -> None:
    session: Any = Session({**STANDALONE, **settings})
    if hint is None:
        check_address_space(session)
    else:
        with pytest.raises(ClusterError, match=rf"at least.*\(in {PYSPARK}\).*Hint: unset it, or set it to {hint} "):
            check_address_space(session)
