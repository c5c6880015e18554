"""What id a category has: the same in the plan of Spark (estimators/categories.py), on ranks and in servers without it.

A category is hashed by its text, so that 7 is the same category in every type that holds it. What the text of a value
is depends on the type that the column had in training: 1.0, true and "01" are "1" where that was an integer. The golden
values in tests/fixtures/golden-values.json hold the functions here and the expressions there together.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import BoolArray, Int64Array, objects_of
from hvdspark.embedding.ids.xxhash import SEED, UInt64Array, decimal_digits, utf8, xxhash64
from hvdspark.errors import DataError

# Values of a column: numpy's, or a sequence of str, int, float, bool, Decimal and None, mixed as they come.
Values = NDArray[Any] | Sequence[Any]

# What counts as a boolean where training had booleans.
AS_BOOLEAN = {"true": ("1", "t", "true", "y", "yes"), "false": ("0", "f", "false", "n", "no")}
# An integer as people and databases write it; Java's $ and this one take a line's end after it.
AS_INTEGER = r"^[+-]?[0-9]{1,19}(\.0*)?$"
# From here on a binary type leaves integers out: a number may once have been its neighbour.
EXACT_BELOW = {"float": 2.0**24, "double": 2.0**53}

_KINDS = {
    **dict.fromkeys(("string", "char", "varchar"), "text"),
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "fraction"),
}
_INTEGER = re.compile(AS_INTEGER)


def element_of(type_name: str) -> str:
    """The type of an array's elements; any other type is itself."""
    return type_name.removeprefix("array<").removesuffix(">")


def kind_of(type_name: str) -> str:
    """What the values of a type are: "text", "integer", "fraction", "boolean", or its own name.

    Of an array or a vector, what its elements are.

    Args:
        type_name: Spark's short name for the type; "" where it is not known.
    """
    element = element_of(type_name)
    base = "double" if element == "vector" else element.split("(")[0].split(" ")[0]
    return _KINDS.get(base, base)


def null_id(id_bits: int) -> int:
    """The id of null, where it is a category of its own."""
    return SEED >> (64 - id_bits)


def category_ids(values: Values, id_bits: int, trained: str = "") -> tuple[Int64Array, BoolArray]:
    """The ids of categories, and which of them are null (their id is `null_id`). int64 [n], bool [n]

    NaN and infinity are null: they are what databases and pandas write where there is no number.

    Args:
        values: one for each row. In numpy's own types all are of one kind, in others each says its own.
        id_bits: ids are in [0, 2**id_bits).
        trained: Spark's type of the column in training; "" where it is not known, or training is now.

    Raises:
        DataError: a value can be no category, or none of a column that was text.
    """
    if isinstance(values, str | bytes | Set | Mapping) or not hasattr(values, "__len__"):
        hint = "of one category, put it into a list"
        raise DataError("categories must be one for each row", value=type(values).__name__, hint=hint)
    if getattr(values, "ndim", 1) != 1:  # numpy's or pandas'
        raise DataError("categories must be one for each row", value=f"shape {np.shape(values)}")
    column = values if isinstance(values, np.ndarray) else objects_of(values)
    hashes, null = np.full(len(column), SEED, dtype=np.uint64), np.ones(len(column), dtype=bool)
    for places, part in _of_one_type(column):
        null[places] = False
        if part.dtype.kind == "f":
            finite = np.isfinite(part)
            null[places[~finite]] = True
            places, part = places[finite], part[finite]
        hashes[places] = _hashes(part, kind_of(trained))
    return (hashes >> np.uint64(64 - id_bits)).view(np.int64), null


def _of_one_type(column: NDArray[Any]) -> Iterator[tuple[Int64Array, NDArray[Any]]]:
    """Places and values of all that are not null: numpy's numbers and booleans, or objects that are all str.

    Raises:
        DataError: a value can be no category.
    """
    if column.dtype.kind in "iubf":
        yield np.arange(len(column)), column
        return
    if column.dtype.kind not in "OU":
        raise _not_a_category(str(column.dtype))
    objects = column.astype(object)
    types = list(map(type, objects.tolist()))
    numbers: dict[type[Any], int] = {found: number for number, found in enumerate(dict.fromkeys(types))}
    number_of = np.fromiter(map(numbers.__getitem__, types), np.int64, len(types))
    for found, number in numbers.items():
        places = np.flatnonzero(number_of == number)
        some = objects[places]
        if found is type(None):
            continue
        if issubclass(found, str):
            yield places, some
        elif issubclass(found, decimal.Decimal):
            finite = np.fromiter((value.is_finite() for value in some), bool, len(some))
            yield places[finite], objects_of([_Digits(_text_of(value)) for value in some[finite]])
        elif found in _DTYPES or issubclass(found, np.bool_ | np.integer | np.floating):
            try:
                yield places, some.astype(_DTYPES.get(found, found))
            except OverflowError as error:
                raise DataError("a category is an integer of more than 64 bits", hint="give it as text") from error
        else:
            raise _not_a_category(found.__name__)


class _Digits(str):
    """The text of a number that is neither an integer of 64 bits nor a binary fraction."""


_DTYPES: dict[type, Any] = {bool: np.bool_, int: np.int64, float: np.float64}


def _not_a_category(what: str) -> DataError:
    hint = "give the values of training; of a date its text"
    return DataError("a category must be a string, an integer or a boolean", value=what, hint=hint)


def _hashes(values: NDArray[Any], trained: str) -> UInt64Array:
    """Of values of one type, none of them null.

    Args:
        trained: kind of the column in training.
    """
    texts: list[str] = values.tolist() if values.dtype.kind == "O" else []
    numbers = not texts or isinstance(texts[0], _Digits)
    if len(values) and trained == "text" and numbers:
        raise DataError(
            "the model was trained on text here, and how it spelt a number nobody knows",
            value="numbers",
            hint="give it the text of training: 7 is another category than 007 or 7.0",
        )
    if values.dtype.kind == "b":
        no, yes = _hash_of("0" if trained == "integer" else "false"), _hash_of("1" if trained == "integer" else "true")
        return np.where(values, yes, no)
    if values.dtype.kind in "iu":
        return _of_integers(values.astype(np.int64), trained)
    if values.dtype.kind == "f":
        # One that is no integer, or so large that it may once have been another, is what it is.
        whole = (values % 1 == 0) & (np.abs(values) < 2.0 ** (np.finfo(values.dtype).nmant + 1))
        hashes = np.empty(len(values), dtype=np.uint64)
        hashes[whole] = _of_integers(values[whole].astype(np.int64), trained)
        hashes[~whole] = xxhash64(*utf8([str(value) for value in values[~whole].tolist()]))
        return hashes
    if trained == "boolean" or (trained == "integer" and not numbers):
        spelt = {text: _as_trained(text, trained) for text in set(texts)}
        texts = [spelt[text] for text in texts]
    return xxhash64(*utf8(texts))


def _of_integers(values: Int64Array, trained: str) -> UInt64Array:
    hashes = xxhash64(*decimal_digits(values))
    if trained == "boolean":
        for number, text in ((1, "true"), (0, "false")):
            hashes[values == number] = _hash_of(text)
    return hashes


def _hash_of(text: str) -> np.uint64:
    return np.uint64(xxhash64(*utf8([text]))[0])


def _as_trained(text: str, trained: str) -> str:
    """A text as training spelt the same integer or boolean."""
    trimmed = text.strip(" ")
    if trained == "integer":
        return str(int(trimmed.partition(".")[0])) if _INTEGER.match(trimmed) else text
    lowered = trimmed.lower()
    return next((name for name, spellings in AS_BOOLEAN.items() if lowered in spellings), lowered)


def _text_of(value: decimal.Decimal) -> str:
    return str(int(value)) if value == value.to_integral_value() else format(value, "f")
