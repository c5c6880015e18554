"""Whether two DataFrames have the same rows, in any order: one number of each, from one pass over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvdspark.data.dataset.schema import quoted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def digest_of_rows(df: DataFrame) -> str:
    """The same for the same rows in whatever order, and else another one but by chance (1 in 2^64). A job of Spark."""
    from pyspark.sql import functions as F

    hashed = F.xxhash64(*(F.col(quoted(name)) for name in sorted(df.columns)))
    # Of 64-bit numbers a sum overflows; equal rows would cancel each other in an xor.
    row = df.select(hashed.alias("h")).agg(
        F.count("h").alias("rows"), F.sum(F.col("h").cast("decimal(20,0)")).alias("sum")
    )
    found = row.first()
    assert found is not None
    return f"{found['rows']} {found['sum'] or 0}"
