"""How many rows Spark has written, to be compared with what this process finds."""

from __future__ import annotations

import logging
import threading
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from hvdspark.errors import StoreError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

logger = logging.getLogger(__name__)

# Spark tells it on its listener bus, right after the job; only a bus that is far behind takes seconds.
_WAIT_S = 30.0
# What completes observations, by the session's UUID: it is a listener of the session's for as long as that lives.
_managers: dict[str, Any] = {}
_lock = threading.Lock()


class _Metrics(Protocol):
    """What Spark measured while a job read a DataFrame."""

    @property
    def get(self) -> dict[str, Any]:
        """By name; waits, without a limit, until the job has ended."""


class CountedRows:
    """A DataFrame whose rows are counted while a job reads them, each once, whatever tasks are tried again.

    Attributes:
        dataframe: the one to write.
    """

    def __init__(self, dataframe: DataFrame) -> None:
        from pyspark.sql import functions as F

        self._observation: _Metrics
        self.dataframe, self._observation = _observe(dataframe, F.count(F.lit(1)).alias("rows"))

    def check(self, found: int, place: str) -> None:
        """Compare with the rows that this process found at `place` after they were written.

        Raises:
            StoreError: it sees fewer or more rows than were written, so the store is not the same place everywhere.
        """
        written = self._rows()
        if written is None:
            logger.warning(
                "Spark does not say how many rows it wrote, so nothing confirms the %d found at %s",
                found,
                place,
            )
        elif written != found:
            raise StoreError(
                "the executors wrote other rows than this process can see",
                value=f"{written} written, {found} found at {place}",
                where="store_uri",
                hint="the store must be the same file system on the driver and on all executors: a directory of each "
                "host (file:///tmp/...) is only that where there is one host",
            )

    def _rows(self) -> int | None:
        """The count; None where Spark does not tell it, or not in time."""
        answer: list[int] = []

        def ask() -> None:
            try:
                rows = self._observation.get.get("rows")
            except Exception as error:  # of any class: a session that was stopped, or a connection that was lost
                logger.debug("Spark was asked how many rows it wrote: %s: %s", type(error).__name__, error)
                return
            if rows is not None:
                answer.append(int(rows))

        # Spark's own wait for it has no limit.
        thread = threading.Thread(target=ask, name="hvdspark-count", daemon=True)
        thread.start()
        thread.join(_WAIT_S)
        return answer[0] if answer else None


class _OfSpark4:
    """An observation that the session does not know of.

    Args:
        told: the JVM's Observation.
    """

    def __init__(self, told: Any) -> None:
        self._told = told

    @property
    def get(self) -> dict[str, Any]:
        return dict(self._told.getAsJava().items())


def _observe(dataframe: DataFrame, metric: Column) -> tuple[DataFrame, _Metrics]:
    """The DataFrame with a metric, and where that will be told.

    The first `DataFrame.observe` with an Observation gives a session of Spark 4.0 an ObservationManager, which cannot
    be serialized, though closures may hold the session: from then on a LogisticRegressionModel that has its summary,
    say, fails with "Task not serializable", whoever trained it. So the manager is made here, beside the session. The
    server of a Connect session has the same fault, which cannot be avoided from a client.
    """
    from pyspark.sql import Observation

    name = f"hvdspark-{uuid.uuid4().hex}"
    try:
        jvm: Any = dataframe.sparkSession._jvm
        told = jvm.org.apache.spark.sql.Observation(name)
        _manager(jvm, dataframe._jdf.sparkSession()).register(told, dataframe._jdf)
        return dataframe.observe(name, metric), _OfSpark4(told)
    except Exception as error:  # Spark 3.5, whose observations leave nothing behind; Connect, which has no JVM
        logger.debug("Spark observes by its own means: %s: %s", type(error).__name__, error)
        observation = Observation(name)
        return dataframe.observe(observation, metric), observation


def _manager(jvm: Any, session: Any) -> Any:
    """The ObservationManager for the JVM's session of a DataFrame."""
    with _lock:
        key = str(session.sessionUUID())
        if key not in _managers:
            _managers[key] = jvm.org.apache.spark.sql.classic.ObservationManager(session)
        return _managers[key]
