"""Every row's bad cases, from made-up facts: no other Java or pyarrow has to be installed for that."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from hvdspark.doctor import as_json, diagnose, healthy, table
from hvdspark.doctor.facts import Facts, HorovodFacts, SessionFacts, WorkerFacts
from hvdspark.doctor.report import Row
from hvdspark.launch.budget import GIB, RANK_BYTES, MemoryBudget, MemoryTerms

VERSIONS: dict[str, str | None] = {
    "Java": "17.0.15",
    "Python": "3.11.7",
    "pyspark": "4.0.5",
    "torch": "2.13.0+cpu",
    "horovod": "0.28.1",
    "petastorm": "0.12.1",
    "pyarrow": "14.0.2",
    "numpy": "1.26.4",
    "pandas": "2.2.3",
}
ON_WORKERS = {name: version for name, version in VERSIONS.items() if name != "Java"}
WORKER = WorkerFacts("h", "/venv/bin/python", ON_WORKERS, 16 * GIB, "this machine's memory")
SESSION = SessionFacts("local[2]", 2, 0, {}, (WORKER, WORKER), memory=MemoryTerms(heap=2 * GIB))
GOOD = Facts(
    versions=VERSIONS,
    horovod=HorovodFacts(("Gloo", "MPI"), ()),
    kernels_absence="",
    session=SESSION,
    store="file:///s",
    executable="/venv/bin/python",
)
GPU = {"spark.executor.resource.gpu.amount": "2", "spark.task.resource.gpu.amount": "1"}


def with_versions(**changed: str | None) -> Facts:
    return dataclasses.replace(GOOD, versions={**VERSIONS, **changed})


def with_session(**changed: Any) -> Facts:
    return dataclasses.replace(GOOD, session=dataclasses.replace(SESSION, **changed))


def row(facts: Facts, name: str) -> Row:
    (found,) = [row for row in diagnose(facts) if row.name == name]
    return found


def test_kernels_that_were_not_compiled_are_no_failure() -> None:
    facts = dataclasses.replace(GOOD, kernels_absence="not compiled")
    found = row(facts, "Kernels")
    assert (found.status, found.found) == ("note", "numpy and torch")
    assert found.problem.startswith("not compiled: ")
    assert healthy(diagnose(facts))


def test_nothing_is_said_of_kernels_that_nobody_looked_at() -> None:
    found = row(dataclasses.replace(GOOD, kernels_absence=None), "Kernels")
    assert (found.status, found.found) == ("skipped", "not looked at: torch and numpy have to work first")


def test_all_is_well() -> None:
    rows = diagnose(GOOD)
    assert {row.status for row in rows} == {"ok"}
    assert healthy(rows)
    assert not any(row.problem or row.fix for row in rows)
    assert [row.name for row in rows] == [
        *("Java", "Python", "Spark", "torch", "Horovod", "Petastorm", "pyarrow", "numpy", "pandas"),
        *("Kernels", "Session", "Free slots", "Dynamic allocation", "Python workers"),
        *("Memory of a rank", "GPUs", "Store"),
    ]


def test_what_a_rank_may_use_with_all_slots_taken() -> None:
    """A host of 16 GiB with a heap of 2 has 7 for each of two ranks; where there is one of 8, that is what is told."""
    name = "Memory of a rank"
    tables = f"{(7 * GIB - RANK_BYTES) / GIB:.2f} GiB"
    assert (
        row(GOOD, name).found == f"7.00 GiB, {tables} of it for embedding tables, with 2 ranks (this machine's memory)"
    )
    smaller = dataclasses.replace(WORKER, host="i", memory_bytes=8 * GIB)
    assert row(with_session(workers=(WORKER, smaller)), name).found.startswith("6.00 GiB, ")
    budget = MemoryTerms(budget=MemoryBudget(3 * GIB - RANK_BYTES, "spark.executor.memoryOverhead"))
    found = row(with_session(memory=budget), name)
    assert found.found.startswith("3.00 GiB, ")
    assert found.found.endswith("with 2 ranks (spark.executor.memoryOverhead)")
    unlimited = row(with_session(memory=MemoryTerms(limited=False)), name)
    assert unlimited.found == "no limit (spark.hvdspark.rankMemory=unlimited)"
    assert row(with_session(settings=GPU), name).found == "no limit where ranks have GPUs"
    assert row(with_session(workers=(), workers_error="no pyarrow"), name).status == "skipped"


def test_a_size_that_spark_could_not_read_is_named() -> None:
    facts = with_session(memory=None, memory_error=("not a size (in spark.executor.memory): 'much'", "like 512m or 4g"))
    found = row(facts, "Memory of a rank")
    assert (found.status, found.fix) == ("BROKEN", "like 512m or 4g")
    assert found.problem.startswith("not a size")


@pytest.mark.parametrize(
    ("facts", "name", "problem", "fix"),
    [
        (with_versions(Java="11.0.2"), "Java", "Java >=17,<22 is needed", "JAVA_HOME"),
        (with_versions(Java="8.0_392"), "Java", "Java >=17,<22 is needed", "JAVA_HOME"),
        (with_versions(Java=None), "Java", "not installed", "OpenJDK 17"),
        (
            dataclasses.replace(with_versions(Java=None), java_error="JAVA_HOME is /x, and there is no /x/bin/java"),
            *("Java", "JAVA_HOME is /x, and there is no /x/bin/java", "let JAVA_HOME name an OpenJDK 17"),
        ),
        (
            dataclasses.replace(with_versions(Java="11.0.2"), other_java="/usr/bin/java"),
            *("Java", "Java >=17,<22 is needed", "unset JAVA_HOME (Spark then takes /usr/bin/java), or let JAVA_HOME"),
        ),
        (with_versions(Python="3.12.1"), "Python", "distutils", "3.11"),
        (with_versions(pyspark="4.1.0"), "Spark", ">=3.5,<4.1", "pyspark==4.0.5"),
        (with_versions(torch=None), "torch", "not installed", "torch==2.13.0"),
        (with_versions(pyarrow="15.0.2"), "pyarrow", "arrow#39112", "pip install pyarrow==14.0.2"),
        (with_versions(numpy="2.1.0"), "numpy", "<2", "numpy==1.26.4"),
        (with_versions(petastorm=None), "Petastorm", "not installed", "petastorm==0.12.1"),
        (with_versions(pandas="3.0.0"), "pandas", "<3", "pandas==2.2.3"),
        (with_versions(horovod=None), "Horovod", "not installed", "hvdspark install-horovod"),
        (
            dataclasses.replace(with_versions(horovod=None), build_failure=("/c/build.log", "CMake Error at x")),
            *(
                "Horovod",
                "the last build failed: CMake Error at x",
                "repair that, then hvdspark install-horovod; the log",
            ),
        ),
        (
            dataclasses.replace(
                with_versions(horovod=None), torch_cuda="13.0", build_failure=("/c/build.log", "CMake Error at x")
            ),
            *(
                "Horovod",
                "CMake Error at x",
                "hvdspark install-horovod --no-cuda (for ranks on CPUs); the log is /c/bui",
            ),
        ),
        (
            dataclasses.replace(GOOD, horovod=None, horovod_error="ImportError: undefined symbol"),
            *("Horovod", "cannot be imported: ImportError: undefined symbol", "hvdspark install-horovod"),
        ),
        (
            dataclasses.replace(GOOD, horovod=HorovodFacts(("MPI",), ())),
            *("Horovod", "without Gloo", "hvdspark install-horovod"),
        ),
        (
            dataclasses.replace(GOOD, session=None, session_error="no answer within 120 s"),
            *("Session", "no answer within 120 s", "--master"),
        ),
        (with_session(slots=0), "Free slots", "no task can run", "spark.executor.instances"),
        (
            with_session(settings={"spark.dynamicAllocation.enabled": "true"}),
            *("Dynamic allocation", "SPARK-24942", "spark.dynamicAllocation.enabled=false"),
        ),
        (
            with_session(workers=(), workers_error="ModuleNotFoundError: No module named 'pyarrow'"),
            *("Python workers", "No module named 'pyarrow'", "export PYSPARK_PYTHON=/venv/bin/python"),
        ),
        (
            with_session(workers=(WorkerFacts("node-7", "/usr/bin/python3", {**ON_WORKERS, "torch": "2.1.0"}),)),
            *("Python workers", "torch 2.1.0 on node-7, 2.13.0+cpu on the driver", "/usr/bin/python3"),
        ),
        (
            with_session(settings={"spark.executor.resource.gpu.amount": "2"}),
            *("GPUs", "tasks ask for no GPU", "spark.task.resource.gpu.amount=1"),
        ),
        (with_session(settings=GPU), "GPUs", "no CUDA", "CUDA build of torch"),
        (
            dataclasses.replace(with_session(settings=GPU), torch_cuda="12.8"),
            *("Horovod", "without NCCL", "hvdspark install-horovod --cuda"),
        ),
        (
            dataclasses.replace(
                GOOD, torch_cuda="13.0", cuda_missing=("nccl.h",), session=with_session(settings=GPU).session
            ),
            *("Horovod", "without NCCL", "install nccl.h; then hvdspark install-horovod --cuda"),
        ),
        (
            dataclasses.replace(GOOD, store_error="cannot write", store_hint="chmod u+w"),
            *("Store", "cannot write", "chmod u+w"),
        ),
        (dataclasses.replace(GOOD, store_error="cannot write"), "Store", "cannot write", "give a URI"),
    ],
)
def test_broken(facts: Facts, name: str, problem: str, fix: str) -> None:
    broken = row(facts, name)
    assert broken.status == "BROKEN"
    assert problem in broken.problem
    assert fix in broken.fix
    assert not healthy(diagnose(facts))


def test_torch_is_repaired_before_the_horovod_that_was_built_against_it() -> None:
    facts = dataclasses.replace(with_versions(torch="1.13.1"), horovod=None, horovod_error="ImportError: x")
    assert row(facts, "Horovod").fix == "repair torch, then hvdspark install-horovod"


def test_session_is_skipped_until_java_works() -> None:
    facts = dataclasses.replace(with_versions(Java="11.0.2"), session=None)
    assert row(facts, "Session").status == "skipped"
    assert "Java" in row(facts, "Session").found
    assert not [row for row in diagnose(facts) if row.name == "Free slots"]


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        (with_session(busy=2), "Free slots", "note"),
        (with_session(slots=None), "Free slots", "skipped"),
        (dataclasses.replace(GOOD, store=None), "Store", "skipped"),
        (dataclasses.replace(GOOD, torch_cuda="12.8"), "Horovod", "note"),
    ],
)
def test_what_is_no_reason_to_fail(facts: Facts, name: str, status: str) -> None:
    assert row(facts, name).status == status
    assert healthy(diagnose(facts))


def test_a_gpu_cluster_in_order() -> None:
    facts = dataclasses.replace(
        with_session(settings=GPU), torch_cuda="12.8", horovod=HorovodFacts(("Gloo",), ("NCCL", "CUDA"))
    )
    assert healthy(diagnose(facts))
    assert row(facts, "Horovod").found == "0.28.1, controllers: Gloo, GPU operations: NCCL, CUDA"
    assert row(facts, "GPUs").found == "2 for each executor, 1 for each task"


def test_slots_count_the_tasks_that_run_now() -> None:
    assert row(with_session(slots=8, busy=3), "Free slots").found == "5 of 8: numWorkers can be up to 5"


def test_table_puts_the_fix_under_the_row() -> None:
    text = table(diagnose(with_versions(pyarrow="15.0.2")))
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("BROKEN"))
    assert lines[at].split() == ["BROKEN", "pyarrow", "15.0.2"]
    assert lines[at + 2].strip() == "fix: python -m pip install pyarrow==14.0.2"
    assert sum(line[0] != " " for line in lines) == 17


def test_json_says_the_same() -> None:
    rows = diagnose(with_versions(pyarrow="15.0.2"))
    data = json.loads(as_json(rows))
    assert data["healthy"] is False
    assert [Row(**item) for item in data["rows"]] == rows


def test_a_notebook_shows_problem_and_fix() -> None:
    rows = diagnose(with_versions(pyarrow="15.0.2"))
    shown = rows._repr_html_()
    broken = sum(row.status == "BROKEN" for row in rows)
    assert f"{broken} of {len(rows)} broken: a fit would fail" in shown
    assert "BROKEN" in shown
    assert "fix: " in shown
    assert "nothing is broken" in diagnose(GOOD)._repr_html_()
