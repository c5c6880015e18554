"""Raw categorical columns on their way to embedding ids, as expressions of the Spark plan. Starts no job.

`hvdspark.embedding.ids.categories` gives the same ids without Spark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from hvdspark.data.dataset.schema import types_of_named
from hvdspark.embedding.ids.categories import AS_BOOLEAN, AS_INTEGER, element_of, kind_of
from hvdspark.errors import SchemaError
from hvdspark.estimators.columns import column
from hvdspark.estimators.trained import NUMBERS, is_gap, is_whole, not_as_trained

_WHOLE = (
    "cast it to bigint where its numbers are whole: as a string, 1.0 is another category than 1; or use it in "
    "continuousCols"
)
_HINTS = {
    **dict.fromkeys(("float", "double", "decimal"), _WHOLE),
    "date": "cast it to string, and each day is a category; or derive what matters, such as dayofweek()",
    "timestamp": "derive what matters, such as hour() or dayofweek(), which are in the session's time zone",
    "timestamp_ntz": "derive what matters, such as hour() or dayofweek()",
    "binary": "turn it into text with hex()",
}
# In which kinds the values of training may come, see `kind_of`. "" is a model that was saved without types.
_TAKEN = {"text": ("text",), **dict.fromkeys(("integer", "boolean", ""), ("text", *NUMBERS))}


def check_categories(schema: StructType, names: Sequence[str], trained: Mapping[str, str] | None = None) -> None:
    """Check that columns hold strings, integers or booleans, or arrays of these.

    Args:
        trained: at scoring, the types of training; a column that has none was saved without. Integers and booleans are
            then taken in any type that holds them, and text as text alone: how a number was spelt nobody knows.

    Raises:
        SchemaError: a column is missing, ambiguous or of another type.
    """
    for name, kind in types_of_named(schema, names, "categoricalCols").items():
        if trained is None:
            if kind_of(kind) not in ("text", "integer", "boolean"):
                raise SchemaError(
                    "a category must be a string, an integer or a boolean, or an array of these",
                    value=kind,
                    where=f"column {name!r}",
                    hint=_HINTS.get(element_of(kind).split("(")[0], "cast it to string"),
                )
        elif kind_of(kind) not in _TAKEN[kind_of(trained.get(name, ""))]:
            was = trained.get(name, "categories")
            hint = f"give it the values of training, as {was}"
            if kind_of(was) == "text":
                hint = "cast it to string where that is how training spelt it: 7 is another category than 007 or 7.0"
            raise not_as_trained(name, kind, was, hint)


def is_array(schema: StructType, name: str) -> bool:
    """Whether a categorical column holds several categories in a row."""
    return isinstance(schema[name].dataType, ArrayType)


def category_key(dataset: DataFrame, name: str, id_bits: int, handle_invalid: str, trained: str = "") -> Column:
    """The ids of a categorical column: bigint in [0, 2**id_bits), or an array of them.

    A category is hashed by its text (xxhash64), so that 7 is the same category in every type that holds it: see
    `_text`. Two of n categories of a column collide with a probability of about n**2 / 2**(id_bits + 1): 1 % for 9.5e6
    at 52 bits.

    Args:
        id_bits: of the ids that the embedding tables take.
        handle_invalid: "keep": null is a category of its own, also inside arrays, and a null array is an empty one;
            otherwise null stays null.
        trained: the column's type in training, where that was before and is known.
    """
    source, kind = column(name), dataset.schema[name].dataType
    element = kind.elementType if isinstance(kind, ArrayType) else kind

    def key(value: Column) -> Column:
        value = _text(value, element.simpleString(), kind_of(trained))
        hashed = F.shiftrightunsigned(F.xxhash64(value), 64 - id_bits)
        return hashed if handle_invalid == "keep" else F.when(value.isNotNull(), hashed)

    if not isinstance(kind, ArrayType):
        return key(source)
    keys = F.transform(source, key)
    return F.coalesce(keys, F.array().cast("array<bigint>")) if handle_invalid == "keep" else keys


def _text(value: Column, type_name: str, trained: str) -> Column:
    """The text of a category as training spelt it: 1.0, true and "01" are "1" where training had integers.

    A fraction that is no integer stays what it is, which training never met; NaN and infinity are null.

    Args:
        type_name: of the value now.
        trained: "integer", "boolean", "text" or "".
    """
    now = kind_of(type_name)
    text = value.cast("string")
    if now == "fraction":
        integer = value.cast("decimal(38,0)" if type_name.startswith("decimal") else "bigint").cast("string")
        text = F.when(is_whole(value, type_name), integer).when(~is_gap(value, type_name), text)
    if trained == "integer" and now == "boolean":
        text = value.cast("int").cast("string")
    if trained == "integer" and now == "text":
        trimmed = F.trim(value)
        digits = F.regexp_replace(trimmed, r"\.0*$", "").cast("decimal(38,0)").cast("string")
        text = F.when(trimmed.rlike(AS_INTEGER), digits).otherwise(value)
    if trained == "boolean" and now != "boolean":
        lowered = F.lower(F.trim(text))
        text = F.when(lowered.isin(*AS_BOOLEAN["true"]), "true").when(lowered.isin(*AS_BOOLEAN["false"]), "false")
        text = F.coalesce(text, lowered)
    return text
