"""Whether two DataFrames are the same query, so that one dataset serves both.

Spark compares plans, and what it cannot compare are functions: `VectorAssembler`, `StandardScaler`, `StringIndexer` and
their kind put a function of Scala into the plan, a new object with every call of `transform`. In a Pipeline that is
fitted once for each candidate, no plan would equal another one. Such functions are compared by what they are shipped
to executors as, their serialised form: equal bytes are the same code with the same values. Functions with the same
values in another order may count as different, which costs a second write and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def same_plan(one: DataFrame, other: DataFrame) -> bool:
    """Whether both give the same rows of the same sources, as far as their plans tell. Starts no job."""
    try:
        return bool(one.sameSemantics(other)) or _same_but_for_objects(one, other)
    except Exception:  # one of them belongs to a session that was stopped
        return False


def _same_but_for_objects(one: DataFrame, other: DataFrame) -> bool:
    jvm: Any = one.sparkSession._jvm
    plan, second = (df._jdf.queryExecution().analyzed() for df in (one, other))
    known = {_digest(jvm, udf.function()): udf.function() for udf in _functions(jvm, plan)}
    if not known:
        return False
    replaced: Any = jvm.scala.collection.immutable.HashMap()
    for udf in _functions(jvm, second):
        function = known.get(_digest(jvm, udf.function()))
        if function is None:
            return False
        replaced = replaced.updated(udf, _with_function(udf, function))
    # A map of Scala is a partial function of it, which is what plans are rewritten with.
    return bool(plan.sameResult(second.transformAllExpressions(replaced)))


def _functions(jvm: Any, plan: Any) -> Iterator[Any]:
    """All expressions of a plan that call a function of Scala."""
    pattern = jvm.org.apache.spark.sql.catalyst.trees.TreePattern.SCALA_UDF()
    plans = [plan]
    while plans:
        node = plans.pop()
        if node.containsPattern(pattern):  # also of what is below
            expressions = _items(node.expressions())
            plans += _items(node.children())
            while expressions:
                expression = expressions.pop()
                if expression.containsPattern(pattern):
                    if expression.getClass().getSimpleName() == "ScalaUDF":
                        yield expression
                    expressions += _items(expression.children())


def _with_function(udf: Any, function: Any) -> Any:
    return udf.copy(
        function,
        udf.dataType(),
        udf.children(),
        udf.inputEncoders(),
        udf.outputEncoder(),
        udf.udfName(),
        udf.nullable(),
        udf.udfDeterministic(),
    )


def _digest(jvm: Any, function: Any) -> bytes:
    """Of the serialised function, which may hold a dictionary of many MB and does not leave the JVM."""
    digest = jvm.java.security.MessageDigest.getInstance("SHA-256")
    stream = jvm.java.security.DigestOutputStream(jvm.java.io.OutputStream.nullOutputStream(), digest)
    writer = jvm.java.io.ObjectOutputStream(stream)
    writer.writeObject(function)
    writer.close()
    return bytes(digest.digest())


def _items(sequence: Any) -> list[Any]:
    return [sequence.apply(position) for position in range(sequence.size())]
