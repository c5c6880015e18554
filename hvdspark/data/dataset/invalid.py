"""What is invalid: null and NaN, in a column or inside its arrays. One definition for fit and transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import Column


def any_of(conditions: Sequence[Column]) -> Column:
    """Whether one of the conditions holds; as a tree: Spark's work grows with the square of a chain's length."""
    level = list(conditions)
    while len(level) > 1:
        pairs = [left | right for left, right in zip(level[0::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def is_invalid(value: Column, dtype: str, is_array: bool) -> Column:
    """Whether a value must not reach the module: true or false, never null.

    Args:
        value: float, double or bigint, or arrays of them (already cast, so that a cast that fails is seen).
        dtype: "float32", "float64" or "int64".
        is_array: whether each row holds an array.
    """
    from pyspark.sql import functions as F

    if dtype != "int64":
        if not is_array:
            return value.isNull() | F.isnan(value)
        # To array_contains NaN equals NaN, and what a null might equal is null. Unlike exists() it becomes Java code.
        return F.coalesce(F.array_contains(value, F.lit(float("nan")).cast("float")), F.lit(True))
    return value.isNull() | F.exists(value, lambda x: x.isNull()) if is_array else value.isNull()
