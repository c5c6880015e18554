"""Raw categorical columns on their way to embedding ids, as expressions of the Spark plan. Starts no job."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DecimalType,
    FractionalType,
    IntegralType,
    NumericType,
    StringType,
    StructType,
)

from hvdspark.data.schema import check_columns
from hvdspark.errors import SchemaError
from hvdspark.estimators.columns import column

_WHOLE = (
    "cast it to bigint where its numbers are whole: as a string, 1.0 is another category than 1; or use it in "
    "continuousCols"
)
_HINTS = {
    **dict.fromkeys(("float", "double", "decimal"), _WHOLE),
    "date": "cast to string, or derive what matters, such as dayofweek()",
    "timestamp": "derive what matters, such as hour() or dayofweek()",
}


def check_categories(schema: StructType, names: Sequence[str], *, scoring: bool = False) -> None:
    """Check that columns hold strings, integers or booleans, or arrays of these.

    Args:
        scoring: whether other numbers are taken, too: one value was missing upstream, and integers became floats.

    Raises:
        SchemaError: a column is missing, ambiguous or of another type.
    """
    if names:  # only whether the columns are there: what their values may be is said below
        check_columns([(field.name, "int") for field in schema.fields], names, [])
    types = {field.name: field.dataType for field in schema.fields}
    for name in names:
        kind = types[name]
        element = kind.elementType if isinstance(kind, ArrayType) else kind
        taken = (StringType, IntegralType, BooleanType, *((NumericType,) if scoring else ()))
        if not isinstance(element, taken):
            shown = element.simpleString()
            raise SchemaError(
                "a category must be a string, an integer or a boolean, or an array of these",
                value=kind.simpleString(),
                where=f"column {name!r}",
                hint=_HINTS.get(shown.split("(")[0], "cast it to string"),
            )


def is_array(schema: StructType, name: str) -> bool:
    """Whether a categorical column holds several categories in a row."""
    return isinstance(schema[name].dataType, ArrayType)


def category_key(dataset: DataFrame, name: str, id_bits: int, handle_invalid: str) -> Column:
    """The ids of a categorical column: bigint in [0, 2**id_bits), or an array of them.

    A category is hashed by its text (xxhash64), so that 7 as int, bigint or string is the same category. Two of n
    categories of a column collide with a probability of about n**2 / 2**(id_bits + 1): 1 % for 9.5e6 at 52 bits.

    Args:
        id_bits: of the ids that the embedding tables take.
        handle_invalid: "keep": null is a category of its own, also inside arrays, and a null array is an empty one;
            otherwise null stays null.
    """
    source, kind = column(name), dataset.schema[name].dataType

    element = kind.elementType if isinstance(kind, ArrayType) else kind

    def key(value: Column) -> Column:
        if isinstance(element, FractionalType):
            value = _whole_as_integer(value, element)
        hashed = F.shiftrightunsigned(F.xxhash64(value.cast("string")), 64 - id_bits)
        return hashed if handle_invalid == "keep" else F.when(value.isNotNull(), hashed)

    if not isinstance(kind, ArrayType):
        return key(source)
    keys = F.transform(source, key)
    return F.coalesce(keys, F.array().cast("array<bigint>")) if handle_invalid == "keep" else keys


def _whole_as_integer(value: Column, kind: FractionalType) -> Column:
    """The text of a number: 1.0 is "1", as the integer was in training; 1.5 stays "1.5"; NaN is null."""
    whole = (value % 1 == 0) & (F.abs(value) < 2.0**63)
    text = F.when(whole, value.cast("bigint").cast("string")).otherwise(value.cast("string"))
    return text if isinstance(kind, DecimalType) else F.when(~F.isnan(value), text)
