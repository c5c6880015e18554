"""The trained embeddings of a column: all of them as a DataFrame, or those of some categories.

Rows are found by key, which is what a category was hashed to: nobody can tell the category from it. Which category has
which key says a DataFrame that has the categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, IntegerType, LongType, StructField, StructType

from hvdspark.artifact.directory import Artifact
from hvdspark.artifact.tables import collections_of, table_place
from hvdspark.embedding.files.entries import FileEntry, parse_entries
from hvdspark.embedding.files.shards import read_file, tensor_name
from hvdspark.embedding.ids.categories import Values, category_ids
from hvdspark.errors import ConfigurationError
from hvdspark.estimators.categories import category_key, check_categories, is_array
from hvdspark.estimators.columns import column as column_named
from hvdspark.estimators.fitted import FittedModule
from hvdspark.estimators.keywords import did_you_mean
from hvdspark.models.click import ClickModel
from hvdspark.models.click_tables import RowsOfColumn
from hvdspark.session import active_session
from hvdspark.store import Store
from hvdspark.train.pickling import unpickled

ROWS = StructType(
    [
        StructField("key", LongType(), False),
        StructField("vector", ArrayType(FloatType(), False), False),
        StructField("weight", FloatType(), True),
        StructField("count", IntegerType(), True),
    ]
)
_ARROW = pa.schema(
    [("key", pa.int64()), ("vector", pa.list_(pa.float32())), ("weight", pa.float32()), ("count", pa.int32())]
)
_CATEGORY = "category"
# A task reads its files one after the other, and hands on a batch at a time.
_TASK_BYTES, _LEAST_TASKS, _BATCH_VALUES = 64 << 20, 8, 1 << 18


def embeddings(state: FittedModule, column: str, categories: DataFrame | None) -> DataFrame:
    """All embeddings of a column; see `CTRClassificationModel.embeddings`, also for what it raises. Starts no job."""
    place = _place(unpickled(state.skeleton), column)
    if categories is not None and not isinstance(categories, DataFrame):
        raise ConfigurationError(
            "not a DataFrame",
            value=type(categories).__name__,
            where="categories",
            hint=f"give a DataFrame with a column {column!r}; or vectors({column!r}, [...]) gives those of a list",
        )
    rows = _rows(active_session(None if categories is None else categories.sparkSession), state, place)
    if categories is None:
        kind = state.types.get(column, "string").removeprefix("array<").removesuffix(">")
        return rows.select(F.lit(None).cast(kind).alias(_CATEGORY), *ROWS.names)
    return rows.join(_keys(state, column, categories), "key", "left").select(_CATEGORY, *ROWS.names)


def vectors(state: FittedModule, column: str, values: Values) -> NDArray[np.float32]:
    """See `CTRClassificationModel.vectors`. Raises ConfigurationError where that is no column of categories."""
    module = state.module()
    place = _place(module, column)
    ids, _ = category_ids(values, state.id_bits, state.types.get(column, ""))
    found = collections_of(module)[place.collection].rows_of(place.table, torch.from_numpy(ids))
    return found[:, : place.width].numpy()


def _place(module: object, column: str) -> RowsOfColumn:
    assert isinstance(module, ClickModel)
    if column not in module.categories:
        hint = did_you_mean(column, module.categories)
        raise ConfigurationError("not a column of categories of this model", value=column, where="column", hint=hint)
    return module.rows_of(column)


def _rows(spark: SparkSession, state: FittedModule, place: RowsOfColumn) -> DataFrame:
    """Columns `ROWS`, read by Spark's tasks, a file at a time."""
    artifact = Artifact.open(state.store, state.model_path, state.fingerprint)
    known, (store, directory) = artifact.tables[place.collection], table_place(artifact, place.collection)
    files = [file for file in parse_entries(known["files"], directory) if file.path and file.rows.get(place.table)]
    tasks = min(len(files), _LEAST_TASKS + sum(file.bytes for file in files) // _TASK_BYTES)

    def read(numbers: Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                yield from batches_of(store, directory, files[number], place)

    return spark.range(0, len(files), 1, max(tasks, 1)).mapInArrow(read, ROWS)


def batches_of(store: Store, directory: str, file: FileEntry, place: RowsOfColumn) -> Iterator[pa.RecordBatch]:
    """The rows of a table in one file, as `ROWS`; their counts are null where an earlier version wrote the file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    tensors = read_file(store, directory, file)
    ids, rows = (tensors[tensor_name(place.table, name)] for name in ("ids", "rows"))
    counts = tensors.get(tensor_name(place.table, "counts"))
    size = max(1, _BATCH_VALUES // max(rows.shape[1], 1))
    for start in range(0, len(ids), size):
        some = rows[start : start + size].float()
        vectors = some[:, : place.width].contiguous().numpy()
        offsets = np.arange(len(some) + 1, dtype=np.int32) * place.width
        missing = pa.nulls(len(some), pa.float32()), pa.nulls(len(some), pa.int32())
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(ids[start : start + size].numpy()),
                pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1))),
                pa.array(some[:, place.width].contiguous().numpy()) if place.has_weight else missing[0],
                missing[1] if counts is None else pa.array(counts[start : start + size].numpy()),
            ],
            schema=_ARROW,
        )


def _keys(state: FittedModule, column: str, categories: DataFrame) -> DataFrame:
    """The key of each category: columns key and category, each key once."""
    check_categories(categories.schema, [column], state.types)
    if is_array(categories.schema, column):
        categories = categories.select(F.explode(column_named(column)).alias(column))
    key = category_key(categories, column, state.id_bits, "error", state.types.get(column, ""))
    known = categories.select(key.alias("key"), column_named(column).alias(_CATEGORY))
    return known.filter(F.col("key").isNotNull()).dropDuplicates(["key"])
