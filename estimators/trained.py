"""The type that a column had in training, and what stands for the same values when it has become another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from hvdspark.embedding.ids.categories import EXACT_BELOW, kind_of
from hvdspark.errors import SchemaError

# Kinds whose values are numbers.
NUMBERS = ("integer", "boolean", "fraction")


def types_of(schema: StructType, names: Iterable[str]) -> dict[str, str]:
    """Spark's short names (`DataType.simpleString()`) of the types of some columns."""
    types = {field.name: field.dataType.simpleString() for field in schema.fields}
    return {name: types[name] for name in names}


def not_as_trained(name: str, now: str, trained: str, hint: str) -> SchemaError:
    """What is raised where nothing stands for the values of training."""
    return SchemaError(f"the model was trained on {trained} here", value=now, where=f"column {name!r}", hint=hint)


def check_still_numbers(now: Mapping[str, str], trained: Mapping[str, str]) -> None:
    """SchemaError where a column of numbers, or of arrays of them, has become something else.

    Args:
        now: types of all columns there are.
        trained: types of those columns in training.
    """
    for name, was in trained.items():
        if name in now and kind_of(now[name]) not in NUMBERS:
            hint = f"cast it to {was} where it holds the same numbers; or derive these as for training"
            if was == "vector":
                hint = "make it as for training: VectorAssembler makes vectors of numbers, array_to_vector of arrays"
            raise not_as_trained(name, now[name], was, hint)


def is_whole(value: Column, type_name: str) -> Column:
    """Whether a fraction is an integer, and surely the one that it was before it became a fraction.

    Args:
        type_name: "float", "double" or "decimal(p,s)".
    """
    whole = value % 1 == 0
    limit = EXACT_BELOW.get(type_name)
    return whole if limit is None else whole & (F.abs(value) < limit)


def is_gap(value: Column, type_name: str) -> Column:
    """Whether a fraction is what databases and pandas write where there is no number: NaN. Infinity counts as one."""
    # To Spark NaN is more than infinity.
    return F.lit(False) if type_name.startswith("decimal") else F.abs(value) >= float("inf")


def as_integer(name: str, value: Column, type_name: str, trained: str) -> Column:
    """A fraction as bigint, null where it is null or NaN. A row with a number that is no integer is an error.

    Args:
        name: of the column.
        type_name: "float", "double" or "decimal(p,s)".
        trained: type in training, for the error.
    """
    text = f"hvdspark: the model was trained on {trained} in column {name!r}, and a {type_name} is no integer, or so "
    text += "large that it may once have been another one. Hint: cast the column before it becomes a fraction"
    fits = is_whole(value, type_name) & (F.abs(value) < 2.0**63)
    error = F.raise_error(F.lit(text))
    return (
        F.when(value.isNull() | is_gap(value, type_name), F.lit(None)).when(fits, value.cast("bigint")).otherwise(error)
    )
