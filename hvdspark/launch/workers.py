"""Whether executors can run Python code of ours, asked before anything is written or started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hvdspark.errors import DependencyError
from hvdspark.launch.interrupt import cancel_jobs, interruptible, new_tag
from hvdspark.launch.job_errors import explain
from hvdspark.launch.start_watch import StartWatch
from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_NEEDED = ("hvdspark", "horovod", "torch", "pyarrow")
# Where nobody knows how many executors there are.
_LEAST_ASKED = 16
# Applications whose executors were asked. Their Python does not change while they live.
_asked: set[str] = set()


def check_workers(spark: SparkSession, num_workers: int, start_timeout_s: float) -> None:
    """Ask the Python workers of a cluster, once for each application.

    A stage of a few Python tasks: about a second, most of which is the start of workers that the ranks need anyway.

    Raises:
        DependencyError: they cannot be started, or lack a package.
        StartTimeoutError: no task got a slot within `start_timeout_s` seconds.
    """
    session = session_of(spark)
    application = session.application()
    if application in _asked:
        return
    asked = spark.range(0, num_workers, 1, num_workers).mapInArrow(_missing, "host string, missing string")
    watch, tag = StartWatch(num_workers, lambda event: None), new_tag()
    watch.begin(start_timeout_s, lambda: session.tasks_run(tag), lambda: cancel_jobs(spark, tag))
    try:
        with session.described("hvdspark looks at the executors' Python"):
            rows = interruptible(spark, asked.collect, tag)
    except Exception as error:
        raise _explained(error) or watch.timed_out() or explain(error, watch.heard()) from error
    finally:
        watch.end()
    for row in rows:
        if row["missing"]:
            raise _wrong_python(f"which lacks {row['missing']}", row["host"])
    _asked.add(application)


def on_many_hosts(spark: SparkSession) -> bool:
    """Whether executors may run on other hosts than this process: a Spark Connect server does not say."""
    session = session_of(spark)
    hosts = session.executor_hosts()
    return not session.runs_here() and (hosts is None or len(set(hosts)) > 1)


def hosts_without(spark: SparkSession, path: str) -> list[str]:
    """Hosts of executors that do not see a file of this host. A stage of a Python task for each executor.

    Args:
        path: of the file, which this process sees.
    """
    session = session_of(spark)
    hosts = session.executor_hosts()
    tasks = session.parallelism() or _LEAST_ASKED if hosts is None else len(hosts)

    def sees(batches: Iterable[Any]) -> Iterator[Any]:
        yield from _told_where_missing(path, batches)

    asked = spark.range(0, tasks, 1, tasks).mapInArrow(sees, "host string, missing boolean")
    with session.described("hvdspark looks whether the executors see the store"):
        rows = interruptible(spark, asked.collect, new_tag())
    return sorted({row["host"] for row in rows if row["missing"]})


def _told_where_missing(path: str, batches: Iterable[Any]) -> Iterator[Any]:
    import os
    import socket

    import pyarrow as pa

    for _ in batches:
        yield pa.RecordBatch.from_pydict({"host": [socket.gethostname()], "missing": [not os.path.exists(path)]})


def _missing(batches: Iterable[Any]) -> Iterator[Any]:
    import importlib.util
    import socket

    import pyarrow as pa

    for _ in batches:
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        row = {"host": [socket.gethostname()], "missing": [", ".join(missing)]}
        yield pa.RecordBatch.from_pydict(row)


def _explained(error: Exception) -> DependencyError | None:
    """What an error of Spark says about the executors' Python, if it does."""
    text = str(error)
    if found := re.search(r'Cannot run program "([^"]*)"', text):
        return _wrong_python("and it cannot be started", found[1])
    if found := re.search(r"No module named '([^']*)'", text):
        return _wrong_python(f"which lacks {found[1]}", None)
    if found := re.search(r"different version\D*([\d.]*\d) than that in driver\D*([\d.]*\d)", text):
        return _wrong_python(f"which is {found[1]}; the driver's is {found[2]}", None)
    if "PYTHON_VERSION_MISMATCH" in text:
        return _wrong_python("of another version than the driver's", None)
    return None


def _wrong_python(why: str, where: str | None) -> DependencyError:
    return DependencyError(
        f"the executors start another Python for Spark, {why}",
        value=where,
        where="PYSPARK_PYTHON",
        hint="every executor needs the driver's packages: set PYSPARK_PYTHON or spark.pyspark.python before the "
        "session starts, or ship an environment (docs/troubleshooting.md, Starting a session)",
    )
