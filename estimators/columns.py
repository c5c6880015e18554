"""DataFrame columns on their way to tensors, as expressions of the Spark plan. Starts no job."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from hvdspark.errors import SchemaError
from hvdspark.specs import ColumnSpec

_SPARK_TYPES = {"float32": "float", "int64": "bigint"}


def column(name: str) -> Column:
    """The top-level column of exactly that name, dots and backticks included."""
    return F.col(f"`{name.replace('`', '``')}`")


def vectors_as_arrays(dataset: DataFrame, names: Sequence[str]) -> tuple[DataFrame, tuple[str, ...]]:
    """`dataset` with its ML vectors (dense or sparse) as array<float>, and the names of those columns."""
    vectors = [
        name for name in names if name in dataset.columns and isinstance(dataset.schema[name].dataType, VectorUDT)
    ]
    converted = {name: _vector_to_array(column(name)) for name in vectors}
    return (dataset.withColumns(converted) if converted else dataset), tuple(vectors)


def check_new_columns(schema: StructType, names: Sequence[str]) -> None:
    """SchemaError when one of the output columns exists already."""
    for name in names:
        if name in schema.names:
            raise SchemaError(
                "output column exists already",
                value=name,
                where="predictionCol or outputCols",
                hint="drop it, or choose another name",
            )


def scoring_input(
    dataset: DataFrame, features: Sequence[ColumnSpec], handle_invalid: str
) -> tuple[DataFrame, list[Column]]:
    """The rows to score and the feature columns in the types that the model was trained on.

    A null feature fails the query with "error", drops the row with "skip", and with "keep" becomes NaN (only
    floats: there is no integer that means "unknown" to every model).

    Raises:
        SchemaError: a feature column is missing or has become something else since training.
    """
    types = dict(zip(dataset.schema.names, dataset.schema.fields, strict=True))
    rows, columns = dataset, []
    for spec in features:
        if spec.name not in types:
            raise SchemaError(
                "column not found", value=spec.name, where="featureCols", hint=f"there are {', '.join(dataset.columns)}"
            )
        data_type = types[spec.name].dataType
        is_list = isinstance(data_type, VectorUDT) or data_type.typeName() == "array"
        if is_list == (spec.layout == "scalar"):
            raise SchemaError(
                f"the model was trained with {'a number' if spec.layout == 'scalar' else 'an array or vector'} here",
                value=data_type.simpleString(),
                where=spec.name,
            )
        raw = column(spec.name)
        if isinstance(data_type, VectorUDT):
            raw = _vector_to_array(raw)
        target = _SPARK_TYPES[spec.dtype] if spec.layout == "scalar" else f"array<{_SPARK_TYPES[spec.dtype]}>"
        value = raw.cast(target)
        if types[spec.name].nullable:
            if handle_invalid == "skip":
                rows = rows.filter(column(spec.name).isNotNull())
            else:
                value = F.coalesce(value, _instead_of_null(spec, handle_invalid, target))
        columns.append(value)
    return rows, columns


def _vector_to_array(vector: Column) -> Column:
    # Spark's conversion fails on null without naming the column; that is left to whoever checks for nulls.
    return F.when(vector.isNotNull(), vector_to_array(vector, "float32"))


def _instead_of_null(spec: ColumnSpec, handle_invalid: str, target: str) -> Column:
    if handle_invalid == "keep" and spec.layout == "scalar" and spec.dtype == "float32":
        return F.lit(float("nan")).cast("float")
    hint = "fill it, or set handleInvalid to 'skip'"
    if handle_invalid == "keep":
        hint += "; only numbers that are not integers can be kept, as NaN"
    return F.raise_error(F.lit(f"null in feature column {spec.name!r}. Hint: {hint}")).cast(target)
