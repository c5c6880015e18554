"""Which session there is, and of which kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvdspark.errors import ClusterError
from hvdspark.session.classic import ClassicSession
from hvdspark.session.connect import ConnectSession
from hvdspark.session.protocol import Session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def is_connect(spark: SparkSession) -> bool:
    """Whether the session is a Spark Connect client, which has no JVM and whose driver is somewhere else."""
    return "pyspark.sql.connect" in type(spark).__module__


def session_of(spark: SparkSession) -> Session:
    """What can be asked of this session."""
    return ConnectSession(spark) if is_connect(spark) else ClassicSession(spark)


def active_session(spark: SparkSession | None) -> SparkSession:
    """`spark`, else the session of this thread or of the process. Raises ClusterError when there is none."""
    from pyspark.sql import SparkSession
    from pyspark.sql.utils import is_remote

    kind = ConnectSession if is_remote() else ClassicSession
    found = spark or SparkSession.getActiveSession() or kind.of_this_process()  # active sessions are per thread
    if found is None:
        raise ClusterError("no active Spark session", hint="SparkSession.builder.getOrCreate(), or pass spark=")
    return found
