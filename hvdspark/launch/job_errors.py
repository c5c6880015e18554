"""What the error of a Spark job means for a gang. Pure."""

from __future__ import annotations

from hvdspark.errors import ClusterError, RankFailedError
from hvdspark.launch.protocol import Located
from hvdspark.launch.start_watch import SLOW, start_timeout


def explain(error: Exception, lost: Located | None) -> Exception:
    """What the error of a barrier job means for the gang.

    Args:
        lost: a rank whose channel ended without a goodbye, if there is one.
    """
    text = str(error)
    if "PythonException" in text:
        trace = text.partition("PythonException: ")[2].partition("\n\n")[0]
        if "StartTimeoutError: " in trace:
            return start_timeout(trace.rpartition("StartTimeoutError: ")[2].strip(), SLOW)
        return ClusterError(
            f"the barrier task itself failed on an executor:\n{trace}\n",
            hint="the executors' Python must have the same packages as the driver's: set PYSPARK_PYTHON "
            "(or spark.pyspark.python) before the session starts",
        )
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
