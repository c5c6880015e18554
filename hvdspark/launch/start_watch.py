"""Whether the tasks of a gang have started, and what a failed job means for it. Driver side."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from hvdspark.errors import ClusterError, RankFailedError, StartTimeoutError

logger = logging.getLogger(__name__)

Event = dict[str, Any]
# After this long without tasks, say so; a gang usually starts within 5 seconds.
_PATIENCE_S = 15.0
_ASK_EVERY_S = 0.5


class StartWatch:
    """Cancels a gang whose tasks do not start in time.

    That they have started is learned from Spark, or from a task that reports over the channel, whichever comes first.
    Spark starts the tasks of a barrier stage together, so one of them is enough.
    """

    def __init__(self, size: int, on_event: Callable[[Event], None]) -> None:
        self._size, self._forward = size, on_event
        self._connected: dict[int, str] = {}
        self._lost: dict[int | None, Event] = {}
        self._timed_out_after_s: float | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def on_event(self, event: Event) -> None:
        """Called by the channel."""
        if event.get("event") == "started":
            with self._lock:
                self._connected[event["rank"]] = event["host"]
                self._lost.pop(event["rank"], None)  # it was only cut off for a moment
        elif event.get("event") != "bye":
            self._forward(event)

    def on_lost(self, hello: Event) -> None:
        """Called by the channel."""
        with self._lock:
            self._lost[hello.get("rank")] = hello

    def begin(self, timeout_s: float, running: Callable[[], bool], cancel: Callable[[], Any]) -> None:
        """Call `cancel` unless tasks run within `timeout_s` seconds.

        Args:
            running: asks Spark whether tasks of the gang run or have run.
        """

        def watch() -> None:
            began_s, patient = time.monotonic(), True
            while not (self._started() or self._ask(running)):
                waited_s = time.monotonic() - began_s
                if waited_s >= timeout_s:
                    self._timed_out_after_s = timeout_s
                    cancel()
                    return
                if patient and waited_s >= _PATIENCE_S:
                    patient = False
                    logger.warning("0 of %d ranks have started after %g s; %s", self._size, _PATIENCE_S, _BUSY)
                if self._over.wait(min(_ASK_EVERY_S, max(0.0, timeout_s - waited_s))):
                    return

        self._thread = threading.Thread(target=watch, name="hvdspark-start-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def explain(self, error: Exception) -> Exception:
        """What a failed Spark job means for the gang."""
        text = str(error)
        if self._timed_out_after_s is not None:
            return start_timeout(f"0 of {self._size} ranks started within {self._timed_out_after_s:g} s", _BUSY)
        if "PythonException" in text:
            trace = text.partition("PythonException: ")[2].partition("\n\n")[0]
            if "StartTimeoutError: " in trace:
                return start_timeout(trace.rpartition("StartTimeoutError: ")[2].strip(), SLOW)
            return ClusterError(
                f"the barrier task itself failed on an executor:\n{trace}\n",
                hint="the executors' Python must have the same packages as the driver's: set PYSPARK_PYTHON "
                "(or spark.pyspark.python) before the session starts",
            )
        with self._lock:
            if "ExecutorLostFailure" in text or "failed barrier ResultStage" in text or self._lost:
                lost: Event = next(iter(self._lost.values()), {})
                reason = next((line for line in text.splitlines() if "reason:" in line), text.splitlines()[0])
                return RankFailedError(
                    lost.get("rank"),
                    lost.get("host", "unknown"),
                    f"its executor was lost: {reason.strip()[:500]}",
                    kind="executor_lost",
                    hint="look for the executor's exit reason (often memory: spark.executor.memoryOverhead)",
                )
        return ClusterError("the barrier job failed", value=text[:4000])

    def _started(self) -> bool:
        with self._lock:
            return bool(self._connected)

    def _ask(self, running: Callable[[], bool]) -> bool:
        try:
            return running()
        except Exception:  # the session ends; the job ends with it, and says why
            logger.debug("Spark did not say which tasks run", exc_info=True)
            return False


_BUSY = "other jobs may hold the slots"
SLOW = "a rank may be slow to import its packages (a cold or remote disk), or its host may hang"


def start_timeout(what: str, why: str) -> StartTimeoutError:
    return StartTimeoutError(
        what,
        where="start_timeout_s",
        hint=f"{why}; `hvdspark doctor` shows the free slots, and startTimeout is the limit",
    )
