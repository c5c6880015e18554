"""DataFrame columns on their way to tensors, as expressions of the Spark plan. Starts no job."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from hvdspark.artifact.inputs import BYTES
from hvdspark.data.dataset.invalid import any_of, is_invalid
from hvdspark.data.dataset.schema import POSITIONS, WIDTH, SourceColumn, check_columns, quoted
from hvdspark.embedding.ids.categories import element_of
from hvdspark.errors import ConfigurationError, SchemaError
from hvdspark.estimators.trained import as_integer, check_still_numbers, not_as_trained
from hvdspark.specs import ColumnSpec

# Sparse vectors of so many values are made dense in the plan: they are small, and dense rows are read fastest.
_NARROW = 4096


def column(name: str) -> Column:
    """The top-level column of exactly that name, dots and backticks included."""
    return F.col(quoted(name))


def vectors_as_arrays(dataset: DataFrame, names: Sequence[str]) -> tuple[DataFrame, tuple[str, ...]]:
    """`dataset` with its ML vectors (dense or sparse) as array<float>, and the names of those columns.

    Of a wide sparse vector the array has what is not 0, or one 0. Beside each of these columns stand two more: where
    the values belong (array<int>; null where all values are there), and how many the vector has.
    """
    wanted = set(names)
    vectors = [
        field.name for field in dataset.schema.fields if field.name in wanted and isinstance(field.dataType, VectorUDT)
    ]
    converted: dict[str, Column] = {}
    for name in vectors:
        size, positions, values = _parts(column(name))
        converted |= {name: values, f"{POSITIONS}{name}": positions, f"{WIDTH}{name}": size}
    return (dataset.withColumns(converted) if converted else dataset), tuple(vectors)


def check_rows(dataset: DataFrame, where: str = "fit") -> None:
    """ConfigurationError where what is to be trained on is no DataFrame of Spark, or one of Structured Streaming.

    Args:
        where: as what it was given.
    """
    check_dataframe(dataset, where)
    if dataset.isStreaming:
        raise ConfigurationError(
            "a fit goes through its rows more than once, and a stream has no end",
            value="a streaming DataFrame",
            where=where,
            hint="fit on a table or on files: read with spark.read what a query has written, or call fit on the "
            "batches inside writeStream.foreachBatch; model.transform(stream) scores a stream",
        )


def check_dataframe(dataset: DataFrame, where: str) -> None:
    """ConfigurationError where something else was given, as what `where` says."""
    if inspect.getattr_static(dataset, "isStreaming", None) is None:  # not asked: that takes a server's answer
        kind = type(dataset)
        raise ConfigurationError(
            "not a DataFrame of Spark",
            value=f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}",
            where=where,
            hint="spark.createDataFrame(rows) makes one of pandas or of a list, spark.read.parquet(path) of files",
        )


def check_new_columns(schema: StructType, names: Sequence[str]) -> None:
    """SchemaError when one of the output columns exists already, two have one name, or one has none."""
    where = "predictionCol, probabilityCol, rawPredictionCol or outputCols"
    session = SparkSession.getActiveSession()
    if session is not None and str(session.conf.get("spark.sql.caseSensitive", "false")).lower() == "true":
        alike: Callable[[str], str] = str
    else:  # names that differ in case alone are one: withColumns would replace the column that is there
        alike = str.lower
    there = {alike(name): name for name in schema.names}
    if not all(names):
        raise SchemaError("an output column needs a name", value=list(names), where=where)
    if len({alike(name) for name in names}) < len(names):
        raise SchemaError("two output columns have the same name", value=list(names), where=where)
    for name in names:
        if alike(name) in there:
            raise SchemaError(
                "output column exists already",
                value=there[alike(name)],
                where=where,
                hint="drop it, or choose another name",
            )


def check_names(names: Sequence[str], outputs: int) -> None:
    """ConfigurationError where outputs of a module have more or fewer names."""
    if len(names) != outputs:
        what = f"the module returns {outputs} output{'s' if outputs > 1 else ''}"
        raise ConfigurationError(what, value=list(names), where="outputCols", hint="name each of them")


def check_one_number(schema: StructType, name: str, hint: str) -> None:
    """SchemaError where a row has several labels; all else that is wrong with a label any estimator refuses."""
    for field in schema.fields:
        if field.name == name and isinstance(field.dataType, ArrayType | VectorUDT):
            kind = field.dataType.simpleString()
            raise SchemaError("a label must be one number", value=kind, where=f"column {name!r}", hint=hint)


def scoring_input(
    dataset: DataFrame,
    features: Sequence[ColumnSpec],
    handle_invalid: str,
    derived: Mapping[str, Column] | None = None,
    trained: Mapping[str, str] | None = None,
) -> tuple[DataFrame, list[Column]]:
    """The rows to score and the feature columns in the types that the model was trained on.

    With "skip", rows with an invalid value are dropped here. Otherwise the scoring function looks at what arrives
    there, at next to no cost.

    Args:
        derived: what stands for a feature column, where that is not the column itself: of the dtype that the model was
            trained on, or an array of it.
        trained: Spark's types of the feature columns in training, where they are known.

    Raises:
        SchemaError: a feature column is missing or has become something else since training.
    """
    derived, trained = derived or {}, trained or {}
    dtypes = {spec.name: spec.dtype for spec in features if spec.name in derived}
    files = {spec.name for spec in features if spec.dtype == BYTES}
    vectors = {field.name for field in dataset.schema.fields if isinstance(field.dataType, VectorUDT)}
    types = [
        (field.name, "array<double>" if field.name in vectors else field.dataType.simpleString().lower())
        for field in dataset.schema.fields
    ]
    check_still_numbers(dict(types), {name: was for name, was in trained.items() if name not in {*derived, *files}})
    types = [(name, _derived_type(kind, dtypes[name]) if name in dtypes else kind) for name, kind in types]
    types = [(name, _type_of_bytes(name, kind) if name in files else kind) for name, kind in types]
    found = check_columns(types, [spec.name for spec in features], [])
    type_of, columns, invalid = dict(types), [], []
    for spec, source in zip(features, found, strict=True):
        _check_layout(spec, source, type_of[spec.name], trained.get(spec.name))
        raw = derived.get(spec.name, column(spec.name))
        if spec.dtype == BYTES:
            columns.append(raw)
            invalid += [raw.isNull()] if handle_invalid == "skip" else []
            continue
        as_trained = SourceColumn(spec.name, "feature", spec.dtype, source.is_array)
        # As float32 a vector would lose integers.
        if spec.layout == "sparse" and spec.name in vectors:
            size, positions, stored = _parts(raw)
            columns.append(F.struct(size.alias("size"), positions.alias("indices"), stored.alias("values")))
            if handle_invalid == "skip":
                invalid.append(is_invalid(stored, spec.dtype, True))
            continue
        value = (
            _vector_to_array(raw, "float64" if spec.dtype == "int64" else "float32") if spec.name in vectors else raw
        )
        if spec.dtype == "int64" and source.dtype != "int64":
            value = _as_integers(spec.name, value, type_of[spec.name], trained.get(spec.name, "integers"))
        value = value.cast(as_trained.spark_type)
        columns.append(value)
        if handle_invalid == "skip":
            invalid.append(is_invalid(value, spec.dtype, source.is_array))
    return (dataset.filter(~any_of(invalid)) if invalid else dataset), columns


def _type_of_bytes(name: str, type_name: str) -> str:
    """What a column of bytes is to the checks of columns. SchemaError where it is none."""
    if type_name != "binary":
        raise not_as_trained(name, type_name, "binary", "read files as spark.read.format('binaryFile') does")
    return "array<tinyint>"


def _check_layout(spec: ColumnSpec, source: SourceColumn, type_name: str, trained: str | None) -> None:
    if source.is_array == (spec.layout == "scalar"):
        raise SchemaError(
            f"the model was trained with {'a number' if spec.layout == 'scalar' else 'an array or vector'} here",
            value=type_name,
            where=f"column {spec.name!r}",
            hint=f"give it what training had{trained and f', {trained}'}; VectorAssembler makes vectors of numbers",
        )


def _as_integers(name: str, value: Column, type_name: str, trained: str) -> Column:
    """Fractions and booleans, or arrays of them, as bigint."""
    element = element_of(type_name)
    if element == "boolean":
        return value
    if not type_name.startswith("array<"):
        return as_integer(name, value, element, trained)
    return F.transform(value, lambda some: as_integer(name, some, element, trained))


def _derived_type(type_name: str, dtype: str) -> str:
    return SourceColumn("", "feature", dtype, type_name.startswith("array<")).spark_type


def _parts(vector: Column) -> tuple[Column, Column, Column]:
    """(size, positions of the values or null where all are there, values) of a vector: int, array<int>, array<float>.

    A sparse vector of at most _NARROW values has all of them, and one without entries a single 0.
    """
    inside = F.unwrap_udt(vector)
    sparse = inside["size"] > _NARROW  # dense vectors have no size there
    empty = F.size(inside["indices"]) == 0
    first, zero = F.array(F.lit(0)), F.array(F.lit(0.0).cast("float"))
    positions = F.when(sparse, F.when(empty, first).otherwise(inside["indices"]))
    stored = F.when(empty, zero).otherwise(inside["values"].cast("array<float>"))
    values = F.when(sparse, stored).otherwise(_vector_to_array(vector, "float32"))
    size = F.when(vector.isNotNull(), F.coalesce(inside["size"], F.size(inside["values"])))
    return size, positions, values


def _vector_to_array(vector: Column, dtype: str) -> Column:
    # Spark's conversion fails on null without naming the column; that is left to whoever checks for nulls.
    return F.when(vector.isNotNull(), vector_to_array(vector, dtype))
