"""Which columns of a DataFrame can be trained on, and as what. Pure: works on names and type names.

A type is given by Spark's short name for it (`DataType.simpleString()`), so neither Spark nor a session is needed:

    boolean, float, double, decimal(p,s)  -> float32
    tinyint, smallint, int, bigint        -> int64      (ids are never a float on the way)
    array<one of these>                   -> the same, with a length in each row

A weight is float32 whatever number it was.
Everything else is refused with what to do about it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvdspark.errors import ConfigurationError, SchemaError
from hvdspark.specs import ColumnSpec

# Columns that materialize adds to the files.
RESERVED_PREFIX = "hvdspark_"
# Beside a column of vectors, in the DataFrame and in the files: where its values belong, in rows of which not all are
# kept, and beside it in the DataFrame: how long its vectors are.
POSITIONS, WIDTH = f"{RESERVED_PREFIX}positions_", f"{RESERVED_PREFIX}width_"

_DTYPES = {
    **dict.fromkeys(("boolean", "float", "double", "decimal"), "float32"),
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), "int64"),
}
_SPARK_TYPES = {"float32": "float", "float64": "double", "int64": "bigint"}
_HINTS = {
    "string": "turn it into numbers with StringIndexer, or into 64-bit keys with pyspark.sql.functions.xxhash64",
    "vector": "turn it into an array with pyspark.ml.functions.vector_to_array",
    "date": "derive numbers from it, such as dayofweek() or unix_date()",
    "timestamp": "derive numbers from it, such as hour() or unix_timestamp()",
    "map": "take the values you need into columns of their own",
    "struct": "take the fields you need into columns of their own, as in select('a.b')",
    "binary": "decode it into an array of numbers",
    "void": "the column holds nothing but null; give it a type and values, or leave it out",
}
_NUMBER_HINTS = {  # of labels and weights: what stands for a category is no number
    "string": "cast it, if it holds numbers; turn classes into 0, 1, 2, ... with StringIndexer, or with "
    "(F.col(...) == 'yes').cast('int')",
}
_ALIASES = {"varchar": "string", "char": "string", "timestamp_ntz": "timestamp", "interval": "timestamp"}


@dataclass(frozen=True)
class SourceColumn:
    """A column that passed the checks, before its rows were seen.

    Attributes:
        name: as in the DataFrame.
        role: "feature" | "label" | "weight"; the first of these that it has.
        dtype: "float32" | "float64" | "int64".
        is_array: whether each row holds an array.
        must_be_fixed: all rows must have the same length (once a Spark vector).
        also: its other roles, such as the label of an autoencoder.
        may_be_sparse: whether the columns POSITIONS and WIDTH of this name stand beside it.
    """

    name: str
    role: str
    dtype: str
    is_array: bool
    must_be_fixed: bool = False
    also: tuple[str, ...] = ()
    may_be_sparse: bool = False

    @property
    def spark_type(self) -> str:
        """What the column is cast to before it is written."""
        return f"array<{self.element_type}>" if self.is_array else self.element_type

    @property
    def element_type(self) -> str:
        """`spark_type`, or that of an element of an array."""
        return _SPARK_TYPES[self.dtype]

    def by_role(self) -> Iterator[SourceColumn]:
        """The column in each of its roles."""
        for role in (self.role, *self.also):
            yield dataclasses.replace(self, role=role, also=())

    def spec(self, lengths: tuple[int, int] | None, sparse: bool = False) -> ColumnSpec:
        """The column's spec, once the shortest and longest array in its rows are known.

        Args:
            sparse: whether there are rows of which not all values are kept.
        """
        if not self.is_array:
            return ColumnSpec(self.name, self.dtype, "scalar")
        if sparse and lengths is not None:
            return ColumnSpec(self.name, self.dtype, "sparse", lengths[0])
        if lengths is not None and lengths[0] == lengths[1] > 0:
            return ColumnSpec(self.name, self.dtype, "fixed", lengths[0])
        return ColumnSpec(self.name, self.dtype, "ragged")


def check_columns(
    schema: Any,
    features: Sequence[str],
    labels: Sequence[str],
    weight: str | None = None,
    validation: str | None = None,
    fixed: Collection[str] = (),
    group: str | None = None,
    wide: Collection[str] = (),
    sparse: Collection[str] = (),
) -> tuple[SourceColumn, ...]:
    """Check the wanted columns against a schema.

    Args:
        schema: a Spark StructType, or pairs of a column name and a type name.
        features, labels, weight: the wanted columns; the result has them in this order, each once. A column may be a
            feature, a label and the weight at the same time.
        validation: name of the boolean column that marks validation rows; not part of the result.
        fixed: array columns that must have the same length in every row.
        group: column of any type that has equal values (no map, no variant); they are held out together. Not part of
            the result.
        wide: columns of numbers that are float64 instead of float32.
        sparse: array columns that have others beside them, see `SourceColumn`.

    Raises:
        ConfigurationError: no feature is asked for, a column is asked for twice in one role, or it also says which rows
            are validation rows, or `fixed` names no array column.
        SchemaError: a column is missing, ambiguous, or of a type that cannot be used.
    """
    types = _types(schema)
    if not features:
        raise ConfigurationError("no feature columns", where="feature_columns", hint="name at least one column")
    roles = [*((name, "feature") for name in features), *((name, "label") for name in labels)]
    roles += [(weight, "weight")] if weight is not None else []
    twice = {name for name, role in roles if roles.count((name, role)) > 1}
    if twice or validation in [name for name, _ in roles]:
        raise ConfigurationError(
            "a column is named twice",
            value=sorted(twice) or validation,
            hint="name each column once among the features and once among the labels; the validation column is neither",
        )
    columns: dict[str, SourceColumn] = {}
    for name, role in roles:
        where = f"{role} columns" if role != "weight" else "weight_column"
        type_name = _type_of(name, types, where)
        element = re.fullmatch(r"array<(.*)>", type_name)
        if role == "weight" and (element or type_name == "boolean"):
            raise SchemaError("a weight must be a number", value=type_name, where=f"column {name!r}")
        hints = _HINTS if role == "feature" else {**_HINTS, **_NUMBER_HINTS}
        dtype = _dtype(name, element[1] if element else type_name, element is not None, hints)
        dtype = "float32" if role == "weight" else dtype
        dtype = "float64" if dtype == "float32" and name in wide else dtype
        if name in columns:
            columns[name] = dataclasses.replace(columns[name], also=(*columns[name].also, role))
        else:
            columns[name] = SourceColumn(
                name, role, dtype, element is not None, name in fixed, may_be_sparse=name in sparse
            )
    if validation is not None and (found := _type_of(validation, types, "validation_column")) != "boolean":
        raise SchemaError(
            "the validation column must be boolean",
            value=found,
            where=f"column {validation!r}",
            hint="true marks validation rows; compare or cast the column first",
        )
    if group is not None and re.search(r"\bmap<|\bvariant\b", found := _type_of(group, types, "group_column")):
        raise SchemaError(
            "equal values of this type cannot be told, so rows cannot be held out together by them",
            value=found,
            where=f"column {group!r} (group_column)",
            hint="make a column of the key alone, such as a number or a string",
        )
    if wrong := sorted(set(fixed) - {column.name for column in columns.values() if column.is_array}):
        raise ConfigurationError("only array columns that are used have a fixed length", value=wrong)
    return tuple(columns.values())


def types_of_named(schema: Any, names: Sequence[str], where: str) -> dict[str, str]:
    """Spark's short names of the types of columns that a user has named, whatever they are.

    Args:
        schema: as for `check_columns`.
        where: what names the columns, for errors.

    Raises:
        SchemaError: a column is missing or ambiguous.
    """
    types = _types(schema)
    return {name: _type_of(name, types, where) for name in names}


def quoted(name: str) -> str:
    """The top-level column of exactly that name in SQL, dots and backticks included."""
    return f"`{name.replace('`', '``')}`"


def _types(schema: Any) -> list[tuple[str, str]]:
    fields: Iterable[Any] = getattr(schema, "fields", schema)
    return [
        field if isinstance(field, tuple) else (field.name, field.dataType.simpleString().lower()) for field in fields
    ]


def _type_of(name: str, types: list[tuple[str, str]], where: str) -> str:
    found = [type_name for other, type_name in types if other == name]
    if len(found) == 1 and not name.startswith(RESERVED_PREFIX):
        return found[0]
    if found:
        what = "column name is ambiguous" if len(found) > 1 else f"column names must not start with {RESERVED_PREFIX}"
        raise SchemaError(what, value=name, where=where, hint="rename the column in the DataFrame")
    names = [other for other, _ in types if not other.startswith(RESERVED_PREFIX)]
    close = [other for other in names if other.lower() == name.lower()] or difflib.get_close_matches(name, names, n=3)
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    else:
        hint = f"the DataFrame has {len(names)} columns: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
    raise SchemaError("column not found", value=name, where=where, hint=hint)


def _dtype(name: str, type_name: str, nested: bool, hints: Mapping[str, str]) -> str:
    base = re.split(r"[(< ]", type_name, maxsplit=1)[0]
    base = _ALIASES.get(base, base)
    if base in _DTYPES:
        return _DTYPES[base]
    shown = f"array<{type_name}>" if nested else type_name
    if nested and base == "array":
        raise SchemaError(
            "arrays of arrays cannot be used", value=shown, where=f"column {name!r}", hint="flatten() the column"
        )
    raise SchemaError(
        "column type cannot be used",
        value=shown,
        where=f"column {name!r}",
        hint=hints.get(base, "use numbers, booleans, or arrays of them"),
    )
