"""What the error of a Spark job means for a gang. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hvdspark.errors import ClusterError, RankFailedError
from hvdspark.launch.protocol import Heard, Located
from hvdspark.launch.start_watch import SLOW, start_timeout

# What Spark says of a job that was cancelled by its group, tag or id; and a server of Spark Connect of an operation.
_CANCELLED = ("SPARK_JOB_CANCELLED", "OPERATION_CANCELED")

# Spark may have heard of the end of an executor before the connection of its task is cut.
_TASK = re.compile(r"barrier task ResultTask\(\d+, (\d+)\) finished unsuccessfully")

# What `run_task` raises, in a traceback.
_STALLED = re.compile(r"RankFailedError: rank (\d+) on host (\S+) failed: (.*)")


def stalled_in(trace: str) -> RankFailedError | None:
    """The error of a task that ended its job because another one does not answer; None where there is none."""
    found = _STALLED.search(trace)
    return None if found is None else RankFailedError(int(found[1]), found[2], found[3], kind="stalled")


def explain(error: Exception, heard: Heard) -> Exception:
    """What the error of a barrier job means for the gang."""
    text = str(error)
    if "PythonException" in text:
        if (stalled := stalled_in(text)) is not None:
            return stalled
        trace = text.partition("PythonException: ")[2].partition("\n\n")[0]
        if "StartTimeoutError: " in trace:
            return start_timeout(trace.rpartition("StartTimeoutError: ")[2].strip(), SLOW)
        return ClusterError(
            f"the barrier task itself failed on an executor:\n{trace}\n",
            hint="the executors' Python must have the same packages as the driver's: set PYSPARK_PYTHON "
            "(or spark.pyspark.python) before the session starts",
        )
    if any(word in text for word in _CANCELLED):  # its tasks end as those of a lost executor do
        return ClusterError("the Spark job of the ranks was cancelled", value=(text.splitlines() or [""])[0][:500])
    lost = _failed_task(text, heard.tasks) or heard.lost
    if "ExecutorLostFailure" in text or "failed barrier ResultStage" in text or lost is not None:
        lines = text.splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "reason:" in line), lines[0])
        return RankFailedError(
            None if lost is None else lost.rank,
            "unknown" if lost is None else lost.host,
            f"its executor was lost: {reason.strip()[:500]}",
            kind="executor_lost",
            hint="look for the executor's exit reason (often memory: spark.executor.memoryOverhead)",
        )
    return ClusterError("the barrier job failed", value=text[:4000])


def _failed_task(text: str, tasks: Sequence[Located]) -> Located | None:
    """The task with which the stage failed, by what Spark says; None where it says nothing."""
    found = _TASK.search(text)
    return None if found is None else next((task for task in tasks if task.partition == int(found[1])), None)
