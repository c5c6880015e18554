"""Whether the rows behind a DataFrame are provably those of the last time: a plan stays equal when its files change.

Provable are files, by a fresh listing of their directories with sizes and times, and rows that are part of the plan
itself. Everything else (catalog tables whose partitions the catalog lists, JDBC, Hive, table formats with an index of
their own, RDDs read from somewhere) counts as changed. So do plans that ask for the time, or whose rows come out of
functions that may give others in every call: `mapInPandas` and its kind, functions over RDDs, and UDFs that say of
themselves that they are not deterministic. (Spark ML says it of functions that may raise an error, those of
`VectorAssembler` and `StringIndexer`; they give the same in every call nevertheless.) What is cached was computed
already, and is judged by its files alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# Their rows are in the plan, which is compared as well.
_IN_THE_PLAN = ("LocalRelation", "Range", "OneRowRelation", "LocalTableScanExec", "RangeExec")
_SOURCE_OF_RDD = re.compile(r"\b(\w+)\[\d+\] at ")
# What RDDs made from rows of the driver consist of. PythonRDD is in those of `createDataFrame` and in those that call a
# function of the user's, which may read anything; one cannot be told from the other.
_RDDS_OF_THE_DRIVER = ("ParallelCollectionRDD", "MapPartitionsRDD", "EmptyRDD")
_RDDS_WHEN_CACHED = (*_RDDS_OF_THE_DRIVER, "PythonRDD")
# Nodes that call a function with whole partitions or groups: Spark does not know what else it reads.
_OPAQUE_NODE = re.compile(r"Pandas|Arrow|Python|^(Flat)?Map|^Typed|CoGroup|AppendColumns|ScriptTransformation")
# Not deterministic to Spark, because they follow from the place or order of a row, or from a seed in the plan.
_REPEATABLE = {
    *("Rand", "Randn", "Uuid", "Shuffle", "MonotonicallyIncreasingID", "SparkPartitionID"),
    *("InputFileName", "InputFileBlockStart", "InputFileBlockLength"),
    *("First", "Last", "AnyValue", "CollectList", "CollectSet"),
}
# More directories than that take longer to list than a dataset of this size is worth keeping.
_MOST_DIRECTORIES = 1000


@dataclass(frozen=True)
class Unproven:
    """Why the rows may have changed since the last time."""

    reason: str


class _UnprovenError(Exception):
    pass


def evidence(df: DataFrame) -> str | Unproven:
    """What must be equal, besides the plan, for the rows to be the same: a digest of listings of all files it reads.

    Args:
        df: of a classic session.
    """
    try:
        # A DataFrame keeps the plan that it was first asked for, with what was cached then; a new one sees what is now.
        execution = df.select("*")._jdf.queryExecution()
        plan = execution.optimizedPlan()
        if not plan.subqueriesAll().isEmpty():
            return Unproven("the plan has subqueries")
        _check_repeatable(df, execution.withCachedData())
        return hashlib.sha256("\n".join(_of_leaves(df, plan)).encode()).hexdigest()  # it is kept, and may be many MB
    except _UnprovenError as error:
        return Unproven(str(error))
    except Exception as error:  # a leaf without these methods, another Spark
        return Unproven(f"the plan does not say what it reads ({type(error).__name__})")


def _check_repeatable(df: DataFrame, plan: Any) -> None:
    """Raise _UnprovenError where the same plan over the same rows may give others; what is cached is a leaf."""
    patterns: Any = df.sparkSession._jvm.org.apache.spark.sql.catalyst.trees.TreePattern  # type: ignore[union-attr]
    if plan.containsPattern(patterns.CURRENT_LIKE()):  # the optimizer puts a constant there
        raise _UnprovenError("it asks for the time")
    nodes = [plan]
    while nodes:
        node = nodes.pop()
        kind = str(node.getClass().getSimpleName())
        if _OPAQUE_NODE.search(kind):
            raise _UnprovenError(f"its rows come out of a function ({kind})")
        if not node.deterministic():
            _check_expressions(_items(node.expressions()))
        nodes += _items(node.children())


def _check_expressions(expressions: list[Any]) -> None:
    for expression in expressions:
        if expression.deterministic():
            continue
        kind = str(expression.getClass().getSimpleName())
        children = _items(expression.children())
        refused = kind not in _REPEATABLE and ("UD" in kind or all(child.deterministic() for child in children))
        if refused and not (kind == "ScalaUDF" and _of_spark_ml(expression.function())):
            raise _UnprovenError(f"a function in it is not deterministic ({kind})")
        _check_expressions(children)


def _of_spark_ml(function: Any) -> bool:
    return str(function.getClass().getName()).startswith("org.apache.spark.ml.")


def _items(sequence: Any) -> list[Any]:
    return [sequence.apply(position) for position in range(sequence.size())]


def _of_leaves(df: DataFrame, plan: Any) -> list[str]:
    return [_of_leaf(df, leaf) for leaf in _items(plan.collectLeaves())]


def _of_leaf(df: DataFrame, leaf: Any) -> str:
    kind = str(leaf.getClass().getSimpleName())
    if kind in _IN_THE_PLAN:
        return ""
    if kind == "InMemoryRelation":
        # Spark caches blocks, but reads the source again for those that it has lost.
        return "\n".join(["cached", *_of_leaves(df, leaf.cacheBuilder().cachedPlan())])
    if kind == "LogicalRDD":
        return _of_rdd(leaf.rdd(), _RDDS_OF_THE_DRIVER)
    if kind == "RDDScanExec":  # below what is cached
        return _of_rdd(leaf.rdd(), _RDDS_WHEN_CACHED)
    if kind in ("LogicalRelation", "FileSourceScanExec"):
        location = leaf.relation().location()
        index = str(location.getClass().getSimpleName())
        if index == "InMemoryFileIndex":  # not a subclass: those of table formats read their own log
            return _listing(df, location)
        raise _UnprovenError(f"its files are listed by {index}")
    raise _UnprovenError(f"it reads from {kind}")


def _of_rdd(rdd: Any, known: tuple[str, ...]) -> str:
    """Nothing, where the rows came from the driver: they are the RDD's own, and the plan names the RDD."""
    for kind in reversed(_SOURCE_OF_RDD.findall(str(rdd.toDebugString()))):  # its source stands last
        if kind not in known:
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
