"""How many rows a job reads of a DataFrame while it writes them, each once, whatever tasks are tried again."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

logger = logging.getLogger(__name__)

# What completes observations, by the session's UUID: it is a listener of the session's for as long as that lives.
_managers: dict[str, Any] = {}
_lock = threading.Lock()


def counted(df: DataFrame) -> tuple[DataFrame, Callable[[], int | None]]:
    """The DataFrame to write, and what waits, without a limit, until it was written, and says the rows.

    The first `DataFrame.observe` with an Observation gives a session of Spark 4.0 an ObservationManager, which cannot
    be serialized, though closures may hold the session: from then on a LogisticRegressionModel that has its summary,
    say, fails with "Task not serializable", whoever trained it. So the manager is made here, beside the session.

    Args:
        df: of a classic session.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    name, rows = f"hvdspark-{uuid.uuid4().hex}", F.count(F.lit(1)).alias("rows")
    try:
        jvm: Any = df.sparkSession._jvm
        told = jvm.org.apache.spark.sql.Observation(name)
        _manager(jvm, df._jdf.sparkSession()).register(told, df._jdf)
        return df.observe(name, rows), lambda: _number(dict(told.getAsJava().items()))
    except Exception as error:  # Spark 3.5, whose observations leave nothing behind
        logger.debug("Spark observes by its own means: %s: %s", type(error).__name__, error)
        observation = Observation(name)
        return df.observe(observation, rows), lambda: _number(observation.get)


def _number(told: dict[str, Any]) -> int | None:
    return None if told.get("rows") is None else int(told["rows"])


def _manager(jvm: Any, session: Any) -> Any:
    """The ObservationManager for the JVM's session of a DataFrame."""
    with _lock:
        key = str(session.sessionUUID())
        if key not in _managers:
            _managers[key] = jvm.org.apache.spark.sql.classic.ObservationManager(session)
        return _managers[key]
