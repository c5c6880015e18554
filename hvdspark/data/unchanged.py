"""Whether the rows behind a DataFrame are provably those of the last time: a plan stays equal when its files change.

Provable are files, by a fresh listing of their directories with sizes and times, and rows that are part of the plan
itself. Everything else (catalog tables whose partitions the catalog lists, JDBC, Hive, table formats with an index of
their own, RDDs read from somewhere) counts as changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# Their rows are in the plan, which is compared as well.
_IN_THE_PLAN = ("LocalRelation", "Range", "OneRowRelation", "LocalTableScanExec", "RangeExec")
_SOURCE_OF_RDD = re.compile(r"\b(\w+)\[\d+\] at ")
# What RDDs made from rows of the driver consist of; none of them reads anything from outside.
_RDDS_OF_THE_DRIVER = ("ParallelCollectionRDD", "MapPartitionsRDD", "PythonRDD", "EmptyRDD")
# More directories than that take longer to list than a dataset of this size is worth keeping.
_MOST_DIRECTORIES = 1000


@dataclass(frozen=True)
class Unproven:
    """Why the rows may have changed since the last time."""

    reason: str


class _UnprovenError(Exception):
    pass


def evidence(df: DataFrame) -> str | Unproven:
    """What must be equal, besides the plan, for the rows to be the same: listings of all files that it reads.

    Args:
        df: of any session. On Spark Connect nothing can be proven.
    """
    try:
        plan = df._jdf.queryExecution().optimizedPlan()
        if not plan.subqueriesAll().isEmpty():
            return Unproven("the plan has subqueries")
        return "\n".join(_of_leaves(df, plan))
    except _UnprovenError as error:
        return Unproven(str(error))
    except Exception as error:  # a leaf without these methods, another Spark, Connect
        return Unproven(f"the plan does not say what it reads ({type(error).__name__})")


def _of_leaves(df: DataFrame, plan: Any) -> list[str]:
    leaves = plan.collectLeaves()
    return [_of_leaf(df, leaves.apply(position)) for position in range(leaves.size())]


def _of_leaf(df: DataFrame, leaf: Any) -> str:
    kind = str(leaf.getClass().getSimpleName())
    if kind in _IN_THE_PLAN:
        return ""
    if kind == "InMemoryRelation":
        # Spark caches blocks, but reads the source again for those that it has lost.
        return "\n".join(_of_leaves(df, leaf.cacheBuilder().cachedPlan()))
    if kind in ("LogicalRDD", "RDDScanExec"):
        return _of_rdd(leaf.rdd())
    if kind in ("LogicalRelation", "FileSourceScanExec"):
        location = leaf.relation().location()
        index = str(location.getClass().getSimpleName())
        if index == "InMemoryFileIndex":  # not a subclass: those of table formats read their own log
            return _listing(df, location)
        raise _UnprovenError(f"its files are listed by {index}")
    raise _UnprovenError(f"it reads from {kind}")


def _of_rdd(rdd: Any) -> str:
    """Nothing, where the rows came from the driver: they are the RDD's own, and the plan names the RDD."""
    for kind in _SOURCE_OF_RDD.findall(str(rdd.toDebugString())):
        if kind not in _RDDS_OF_THE_DRIVER:
            raise _UnprovenError(f"it reads from an RDD with {kind}")
    return ""


def _listing(df: DataFrame, location: Any) -> str:
    """Fresh listings of the directories of all files: path, length and time of modification of what is there.

    The index itself was made when the DataFrame was, and does not notice files that were replaced since.
    """
    session: Any = df.sparkSession
    configuration = session._jsparkSession.sessionState().newHadoopConf()
    files = str(location.allFiles().mkString("\n"))
    named = re.findall(r"\bpath=([^;]+);", files)
    roots = location.rootPaths()
    directories = {name.rpartition("/")[0] for name in named}
    directories |= {str(roots.apply(position).toString()) for position in range(roots.size())}
    if len(directories) > _MOST_DIRECTORIES:
        raise _UnprovenError(f"its files lie in {len(directories)} directories")
    listings = []
    for directory in sorted(directories):
        path = session._jvm.org.apache.hadoop.fs.Path(directory)
        found = sorted(status.toString() for status in path.getFileSystem(configuration).listStatus(path))
        listings.append(re.sub(r"access_time=\d+", "", "\n".join(found)))
    return "\n".join([re.sub(r"access_time=\d+", "", files), *listings])
