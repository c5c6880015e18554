"""What the doctor looks at. Gathering only records; what a fact means is decided in `report`."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hvdspark import horovod_build, versions
from hvdspark.errors import ConfigurationError, HvdSparkError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from hvdspark.launch.budget import MemoryTerms

# In a process of its own: a Horovod that was built against another torch can end the interpreter that imports it.
_ASK_HOROVOD = """
import json, torch
print(json.dumps({"cuda": torch.version.cuda}), flush=True)
from hvdspark.embedding.kernels import library
print(json.dumps({"kernels": library.absence(), "processor": library.processor()}), flush=True)
import horovod.torch as hvd
built = lambda names: [name for name in names if getattr(hvd, name.lower() + "_built")()]
print(json.dumps({"controllers": built(["Gloo", "MPI"]), "gpu_operations": built(["NCCL", "CUDA", "ROCm", "DDL"])}))
"""


@dataclass(frozen=True)
class HorovodFacts:
    """With what the installed Horovod was built: e.g. ("Gloo", "MPI") and ("NCCL",)."""

    controllers: tuple[str, ...]
    gpu_operations: tuple[str, ...]


@dataclass(frozen=True)
class WorkerFacts:
    """One Python worker of an executor.

    Attributes:
        memory_bytes, memory_setting: of its machine or container, and what that follows from.
    """

    host: str
    executable: str
    versions: dict[str, str | None]
    memory_bytes: int = 0
    memory_setting: str = ""


@dataclass(frozen=True)
class SessionFacts:
    """A session that answers. `slots` is None where it cannot be known (Spark Connect).

    Attributes:
        slots, busy: tasks that can run at the same time, and tasks that run now.
        settings: the Spark settings of `_SETTINGS` that are set.
        workers: one for each slot that was asked; empty with `workers_error` when they could not run Python.
        memory: what the session says of the memory of each rank where all slots have one; None, with what is wrong and
            a hint in `memory_error`, where its settings cannot be read.
    """

    master: str
    slots: int | None
    busy: int
    settings: dict[str, str]
    workers: tuple[WorkerFacts, ...] = ()
    workers_error: str | None = None
    memory: MemoryTerms | None = None
    memory_error: tuple[str, str] | None = None


@dataclass(frozen=True)
class Facts:
    """Everything the doctor knows. Versions are of Java, Python and the packages; None where there is none.

    Attributes:
        java_error: why the Java that Spark would start has no version; None also where there is no Java at all.
        other_java: the `java` on PATH that would do, where JAVA_HOME keeps Spark from it.
        build_failure: log and first error of the last Horovod build, where it failed.
        kernels_absence: why the loops over embeddings are not the compiled ones; "" where they are; None: not known.
        kernels_processor: whose loops run, see `hvdspark.embedding.kernels.library`; "" where it is not known.
        cuda_missing: what a Horovod for GPUs would need here, where torch has CUDA.
    """

    versions: dict[str, str | None]
    java_error: str | None = None
    other_java: str | None = None
    torch_cuda: str | None = None
    horovod: HorovodFacts | None = None
    horovod_error: str | None = None
    build_failure: tuple[str, str] | None = None
    cuda_missing: tuple[str, ...] = ()
    kernels_absence: str | None = None
    kernels_processor: str = ""
    session: SessionFacts | None = None
    session_error: str | None = None
    store: str | None = None
    store_error: str | None = None
    store_hint: str | None = None
    executable: str = field(default=sys.executable)


_SETTINGS = (
    "spark.dynamicAllocation.enabled",
    "spark.executor.resource.gpu.amount",
    "spark.task.resource.gpu.amount",
)
_MAX_WORKERS_ASKED = 64


def gather(master: str | None = None, store: str | None = None, timeout_s: float = 120.0) -> Facts:
    """Look at this machine, at a Spark session (the active one, or one started here and stopped again) and a store.

    Never raises: what cannot be learnt is recorded with its reason.

    Args:
        master: Spark master of a session to start; None takes the active session, spark-defaults or local[*].
        store: URI of a store to try to write to; None asks for no store.
        timeout_s: seconds that the session may take to start and to run one small job.
    """
    home = os.environ.get("JAVA_HOME")
    java, java_error = _java(home)
    found: dict[str, str | None] = {"Java": java, "Python": platform.python_version()}
    found.update({name: versions.installed(name) for name in versions.PACKAGES})
    on_path = shutil.which("java") if home and versions.problem("Java", java) else None
    other = on_path if on_path and versions.problem("Java", _java(None)[0]) is None else None
    facts = _with_horovod(Facts(versions=found, java_error=java_error, other_java=other))
    if store is not None:
        facts = _with_store(facts, store)
    # Not worth a try, and the message of a JVM that does not start helps nobody.
    if not any(versions.problem(name, found[name]) for name in ("Java", "Python", "pyspark")):
        facts = _with_session(facts, master, timeout_s)
    return facts


def _java(home: str | None) -> tuple[str | None, str | None]:
    """The version of the Java that Spark would start, and why there is none.

    Spark's `bin/spark-class` takes JAVA_HOME's where that is set, whatever is there, and only else the one on PATH.
    """
    command = os.path.join(home, "bin", "java") if home else "java"
    try:
        answer = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return None, f"JAVA_HOME is {home}, and there is no {command}" if home else None
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{command} cannot be run: {error}"
    version = versions.java_version(answer.stderr)
    return version, None if version else f"{command} does not tell its version: {_last_line(answer.stderr)}"


def _with_horovod(facts: Facts) -> Facts:
    try:
        answer = subprocess.run([sys.executable, "-c", _ASK_HOROVOD], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return replace(facts, horovod_error="importing it took more than 120 s")
    if failure := horovod_build.last_failure():
        facts = replace(facts, build_failure=(str(failure[0]), failure[1]))
    found: dict[str, Any] = {}
    for line in answer.stdout.splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    facts = replace(
        facts,
        torch_cuda=found.get("cuda"),
        kernels_absence=found.get("kernels"),
        kernels_processor=found.get("processor", ""),
    )
    if facts.torch_cuda:
        facts = replace(facts, cuda_missing=tuple(horovod_build.missing_for_cuda(facts.torch_cuda)))
    if answer.returncode != 0 or "controllers" not in found:
        return replace(facts, horovod_error=_last_line(answer.stderr) or f"exit {answer.returncode}")
    return replace(facts, horovod=HorovodFacts(tuple(found["controllers"]), tuple(found["gpu_operations"])))


def _with_store(facts: Facts, uri: str) -> Facts:
    from hvdspark.store import Store
    from hvdspark.store.spellings import redacted

    try:
        Store(uri, "--store").check_writable()
    except HvdSparkError as error:
        what = str(error).removesuffix(f". Hint: {error.hint}")
        return replace(facts, store=redacted(uri), store_error=what, store_hint=error.hint)
    return replace(facts, store=uri)


def _with_session(facts: Facts, master: str | None, timeout_s: float) -> Facts:
    """In a thread, because a master that does not answer can keep the JVM waiting for ever."""
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()  # here, because a session is active for a thread
    outcome: list[Facts] = []

    def look() -> None:
        try:
            outcome.append(replace(facts, session=_session_facts(active, master)))
        except Exception as error:  # whatever it is, it is the diagnosis
            outcome.append(replace(facts, session_error=_last_line(str(error)) or type(error).__name__))

    thread = threading.Thread(target=look, name="hvdspark-doctor", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return outcome[0] if outcome else replace(facts, session_error=f"no answer within {timeout_s:g} s")


def _session_facts(active: SparkSession | None, master: str | None) -> SessionFacts:
    from hvdspark.session import is_connect, session_of

    spark = active or _start(master)
    try:
        session = session_of(spark)
        with session.described("hvdspark doctor"):  # returns when there is an executor, so that its slots are counted
            spark.range(0, 1, 1, 1).count()
        slots = session.slots()
        settings = {key: value for key in _SETTINGS if (value := spark.conf.get(key, None))}
        facts = SessionFacts(
            master="Spark Connect" if is_connect(spark) else session.master(),
            slots=slots,
            busy=session.busy_tasks(),
            settings=settings,
        )
        facts = _with_memory(facts, spark)
        try:
            with session.described("hvdspark doctor"):
                return replace(facts, workers=_workers(spark, min(slots or 1, _MAX_WORKERS_ASKED)))
        except Exception as error:  # any failure of the job is what the user has to see
            return replace(facts, workers_error=_last_line(str(error)))
    finally:
        if active is None:
            spark.stop()


def _with_memory(facts: SessionFacts, spark: SparkSession) -> SessionFacts:
    from hvdspark.launch.memory import memory_terms

    try:
        return replace(facts, memory=memory_terms(spark, facts.slots or 1))
    except ConfigurationError as error:
        return replace(facts, memory_error=(str(error).removesuffix(f". Hint: {error.hint}"), error.hint or ""))


def _start(master: str | None) -> SparkSession:
    from pyspark.sql import SparkSession

    remote = master or os.environ.get("SPARK_REMOTE") or ""
    if remote.startswith("sc://"):
        return SparkSession.builder.remote(remote).getOrCreate()
    from pyspark import SparkConf  # which a client of Spark Connect may not have

    chosen = master or SparkConf().get("spark.master") or "local[*]"
    # What goes wrong stands in the table.
    quiet: dict[str, Any] = {
        "spark.log.level": "OFF",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master(chosen).appName("hvdspark doctor").config(map=quiet)
    if chosen.startswith("local"):
        # Whatever the machine's host name resolves to, if it does.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
    return builder.getOrCreate()


def _workers(spark: SparkSession, count: int) -> tuple[WorkerFacts, ...]:
    rows = spark.range(0, count, 1, count).mapInArrow(_describe_worker, "description string").collect()
    return tuple(WorkerFacts(**json.loads(row.description)) for row in rows)


def _describe_worker(batches: Iterable[Any]) -> Iterator[Any]:
    """Runs in a Python worker of an executor: one row that describes it."""
    import pyarrow

    from hvdspark.launch.machine import machine_memory

    for _ in batches:
        pass
    here = {name: versions.installed(name) for name in ("Python", *versions.PACKAGES)}
    memory = machine_memory()
    description = asdict(WorkerFacts(socket.gethostname(), sys.executable, here, memory.bytes, memory.setting))
    yield pyarrow.RecordBatch.from_pydict({"description": [json.dumps(description)]})


def _last_line(text: str) -> str:
    """The line of a traceback or log that names the error: the last one that looks like `SomeError: message`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines or [""])[-1][:300]
