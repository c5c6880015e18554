"""Raw continuous columns on their way to the model, as expressions of the Spark plan. Starts no job."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, DecimalType, LongType, NumericType, StringType, StructType

from hvdspark.data.moments import Moments
from hvdspark.data.schema import check_columns, quoted
from hvdspark.errors import SchemaError

# The smallest double that becomes infinite as a float32.
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103
# A column that has fewer doubles between its least and its largest number is one to be named.
_FEW_STEPS = 256


def check_numbers(schema: StructType, names: Sequence[str]) -> None:
    """Check that columns hold one number or boolean in a row.

    Raises:
        SchemaError: a column is missing, ambiguous or of another type.
    """
    if names:  # only whether the columns are there: what their values may be is said below
        check_columns([(field.name, "int") for field in schema.fields], names, [])
    types = {field.name: field.dataType for field in schema.fields}
    for name in names:
        kind = types[name]
        if not isinstance(kind, NumericType | BooleanType):
            hint = "derive numbers from it"
            if isinstance(kind, StringType):
                hint = "use it in categoricalCols, or cast it to double where it holds numbers"
            elif isinstance(kind, ArrayType):
                hint = "take its elements into columns of their own; arrays of categories belong into categoricalCols"
            raise SchemaError(
                "a continuous column must hold one number in each row",
                value=kind.simpleString(),
                where=f"column {name!r}",
                hint=hint,
            )


def number(name: str) -> Column:
    """A continuous column as double, with NaN where it is infinite or beyond the float32 range (3.4e38).

    So that one such number is what handleInvalid is about: a score would be NaN, and null after its way through pandas.
    """
    value = f"CAST({quoted(name)} AS DOUBLE)"
    # Text is one call to the JVM, where each operation on a Column is some: seconds for 1000 columns.
    return F.expr(f"CASE WHEN abs({value}) >= {_BEYOND_FLOAT32!r}D THEN double('NaN') ELSE {value} END")


def lost_in_double(schema: StructType, names: Sequence[str], rows: Moments) -> list[str]:
    """Warnings for whole or decimal numbers whose differences are too small beside their size for a double.

    Args:
        rows: moments of the columns `names`.
    """
    warnings = []
    _, _, _, low, high = rows.inputs[:, : len(names)]
    types = {field.name: field.dataType for field in schema.fields}
    for name, least, most in zip(names, low, high, strict=True):
        kind = types[name]
        if not isinstance(kind, LongType | DecimalType) or not np.isfinite([least, most]).all():
            continue
        smallest = 10.0**-kind.scale if isinstance(kind, DecimalType) else 1.0
        step = np.spacing(max(abs(least), abs(most)))
        if step > smallest and most - least < _FEW_STEPS * step:
            warnings.append(
                f"column {name!r}: its numbers ({least:.17g} to {most:.17g}) differ by less than a double can tell; "
                "subtract an offset from it, or use it in categoricalCols"
            )
    return warnings
