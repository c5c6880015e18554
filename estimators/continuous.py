"""Raw continuous columns on their way to the model, as expressions of the Spark plan. Starts no job.

`hvdspark.artifact.inputs.numbers` gives the same numbers without Spark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, LongType, StructType

from hvdspark.artifact.inputs import BEYOND_FLOAT32
from hvdspark.data.dataset.schema import quoted, types_of_named
from hvdspark.data.readers.moments import Moments
from hvdspark.embedding.ids.categories import kind_of
from hvdspark.errors import SchemaError
from hvdspark.estimators.trained import NUMBERS, check_still_numbers

# A column that has fewer doubles between its least and its largest number is one to be named.
_FEW_STEPS = 256


# What a user may mean who names such a column; each of these gives a number that check_numbers takes.
_HINTS = {
    "string": "use it in categoricalCols, or cast it to double where it holds numbers",
    "date": "derive a number, such as unix_date() or dayofweek()",
    "timestamp": "cast it to double, which counts seconds since 1970 in any time zone; or derive what matters, such as "
    "hour() or dayofweek(), which are in the session's time zone",
    "timestamp_ntz": "derive a number, such as hour() or dayofweek()",
}


def check_numbers(schema: StructType, names: Sequence[str], trained: Mapping[str, str] | None = None) -> None:
    """Check that columns hold one number or boolean in a row: any is the same double as in training.

    Args:
        trained: at scoring, the types of training, where they are known.

    Raises:
        SchemaError: a column is missing, ambiguous or of another type.
    """
    types = types_of_named(schema, names, "continuousCols")
    check_still_numbers(types, trained or {})
    for name, kind in types.items():
        array = kind.startswith("array<") or kind == "vector"
        if kind_of(kind) in NUMBERS and not array:
            continue
        hint = _HINTS.get(kind, "derive numbers from it")
        if array:
            hint = (
                "take its elements into columns of their own, as with vector_to_array(); arrays of categories belong "
                "into categoricalCols"
            )
        raise SchemaError(
            "a continuous column must hold one number in each row", value=kind, where=f"column {name!r}", hint=hint
        )


def number(name: str) -> Column:
    """A continuous column as double, with NaN where it is infinite or beyond the float32 range (3.4e38).

    So that one such number is what handleInvalid is about: a score would be NaN, and null after its way through pandas.
    """
    value = f"CAST({quoted(name)} AS DOUBLE)"
    # Text is one call to the JVM, where each operation on a Column is some: seconds for 1000 columns.
    return F.expr(f"CASE WHEN abs({value}) >= {BEYOND_FLOAT32!r}D THEN double('NaN') ELSE {value} END")


def lost_in_double(schema: StructType, names: Sequence[str], rows: Moments | None) -> list[str]:
    """Warnings for whole or decimal numbers whose differences are too small beside their size for a double.

    Args:
        rows: moments of the columns `names`; None where there are no such columns.
    """
    warnings: list[str] = []
    if rows is None:
        return warnings
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
                f"column {name!r}: its numbers differ by less than a double can tell; "
                "subtract an offset from it, or use it in categoricalCols"
            )
    return warnings
