"""Raw continuous columns on their way to the model, as expressions of the Spark plan. Starts no job."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, NumericType, StringType, StructType

from hvdspark.data.schema import check_columns
from hvdspark.errors import SchemaError
from hvdspark.estimators.columns import column


def check_numbers(schema: StructType, names: Sequence[str]) -> None:
    """Check that columns hold one number or boolean in a row.

    Raises:
        SchemaError: a column is missing, ambiguous or of another type.
    """
    for name in names:
        # Only whether the column is there: what its values may be is said below.
        check_columns([(field.name, "int") for field in schema.fields], [name], [])
        kind = schema[name].dataType
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
    """A continuous column as float, with NaN where it is infinite or beyond the float32 range (3.4e38).

    So that one such number is what handleInvalid is about: a score would be NaN, and null after its way through pandas.
    """
    value = column(name).cast("float")
    return F.when(F.abs(value) == F.lit(float("inf")), F.lit(float("nan")).cast("float")).otherwise(value)
