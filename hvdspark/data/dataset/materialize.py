"""A DataFrame becomes Parquet files for Petastorm: written once, checked while it is written, deleted afterwards.

The files are plain Parquet as Petastorm's batch reader takes it (`petastorm.make_batch_reader` reads them as they are,
and `loader` reads them through Petastorm's workers). They are written by Spark, as Petastorm's own
`make_spark_converter` does it, but not by calling that, because it

* runs two more jobs over the written files (schema, count), and 1.7 times the time of the plain write in all;
* holds one lock for the whole process while it writes, so that the threads of a CrossValidator queue up;
* neither checks the rows nor splits them, and leaves its directory until the interpreter exits;
* reaches into the JVM, so that it works neither on Spark Connect nor with two stores in one session.

What happens here, in one pass over the DataFrame: the wanted columns are cast, rows are told apart into training,
validation and dropped ones (a directory each), the footers are read once, and the evidence in them is checked. Any
failure deletes what was written. A second call with the same plan and columns writes nothing while the dataset is held
(see `cache`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvdspark.data.dataset import cache, leases
from hvdspark.data.dataset.candidates import Candidates
from hvdspark.data.dataset.checks import check_array, check_column, check_sizes
from hvdspark.data.dataset.digest import digest_of_rows
from hvdspark.data.dataset.footers import ColumnEvidence, Evidence, count_where, read_footers
from hvdspark.data.dataset.invalid import any_of, is_invalid
from hvdspark.data.dataset.schema import POSITIONS, RESERVED_PREFIX, WIDTH, SourceColumn, quoted
from hvdspark.data.dataset.selection import Selection
from hvdspark.data.dataset.written import CountedRows
from hvdspark.errors import DataError, SchemaError, StoreError
from hvdspark.session import Unproven, session_of
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroups
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

logger = logging.getLogger(__name__)

_SPLIT = f"{RESERVED_PREFIX}split"
_LENGTH = f"{RESERVED_PREFIX}length_"
_TRAIN, _VALIDATION, _DROPPED, _UNDEFINED = range(4)
# Small enough that all ranks find work and a shuffle window holds several, large enough that reading one is efficient:
# 30 000 rows of 40 plain columns, and more where values repeat.
_ROW_GROUP_BYTES = 8 << 20
# Rows that are nearly the same take no bytes, so a row group would never end. Parquet before 1.16 has no limit of rows
# for a row group, but Spark has one for a file.
_MOST_FILE_ROWS = 1 << 20
# Thousands of tiny partitions must not become thousands of files. No shuffle; fewer partitions stay as they are.
_MAX_FILES = 200


@contextlib.contextmanager
def materialize(
    df: DataFrame,
    selection: Selection,
    store: Store,
    *,
    num_workers: int,
    owner: object | None = None,
    candidates: Candidates | None = None,
) -> Iterator[DatasetSpec]:
    """Write the wanted columns of a DataFrame as a dataset of the store, for as long as the context lasts.

    Args:
        df: what the selection was made of.
        selection: which columns and rows.
        store: where to write; the dataset is a directory of its own in it.
        num_workers: ranks that will read.
        owner: the dataset also outlives the context while this object is alive, so that the next call finds it; `df`
            itself by default. Give the user's DataFrame when `df` was derived from it.
        candidates: which others will want the dataset, too.

    Raises:
        StoreError: the store cannot be written; before any work.
        DataError: the rows cannot be used; nothing is left in the store.
    """
    prepared = _prepare(df, selection)
    session = session_of(df.sparkSession)
    proof = session.evidence(df)
    one_state = candidates is not None and candidates.one_state
    # What cannot be proven unchanged equals nothing, not even itself a moment later. Where a seed draws rows it is a
    # part of the plan, and the plans are compared; where it draws none, it makes no other dataset.
    unproven = candidates.id if candidates is not None and one_state else object()
    key = (store, dataclasses.replace(selection, seed=0), unproven if isinstance(proof, Unproven) else proof)

    def write(path: str) -> DatasetSpec:
        if isinstance(proof, Unproven):
            logger.info("the rows are written, whether or not they were before: %s", proof.reason)
        return _write(prepared, selection, store, path, num_workers)

    holder = object()
    entry = cache.obtain(store, key, prepared, lambda other: session.same_plan(prepared, other), holder, write)
    try:
        if not isinstance(proof, Unproven):
            cache.hold_while_alive(entry, df if owner is None else owner)
        if candidates is not None and (one_state or not isinstance(proof, Unproven)):
            cache.hold_while_alive(entry, candidates, newest_only=not one_state)
        assert entry.spec is not None
        with leases.renewed(store, entry.path):
            yield entry.spec
    finally:
        cache.release(entry, holder)


def check_same_rows(df: DataFrame, selection: Selection, store: Store, data: DatasetSpec) -> None:
    """Refuse rows that are not those of a dataset which was written of other, perhaps equal ones. Two jobs of Spark.

    Which of them are for validation is the dataset's matter, as that may have been drawn.

    Raises:
        StoreError: the dataset is not there any more.
        SchemaError, DataError: the columns, or the rows, are others.
    """
    if not store.exists(f"{data.path}/data"):
        raise StoreError(
            "the rows of the run are not there any more", value=store.spark_uri(data.path), hint="start a new run"
        )
    given, written = _prepare(df, selection), df.sparkSession.read.parquet(store.spark_uri(f"{data.path}/data"))
    now, then = (sorted(set(rows.dtypes) - {(_SPLIT, "int")}) for rows in (given, written))
    if now != then:
        raise SchemaError(
            "these are not the columns with which the run was begun",
            value=sorted({f"{name} ({kind})" for name, kind in set(now) ^ set(then)}),
            hint="give the same columns, or another name for a new run",
        )
    names = [name for name, _ in now]
    digests = []
    for rows in (written, given):
        used = rows.where(f"{_SPLIT} < {_DROPPED}") if _SPLIT in rows.columns else rows
        digests.append(digest_of_rows(used.select(*(quoted(name) for name in names))))
    if digests[0] != digests[1]:
        raise DataError(
            "the rows have changed since the run was begun",
            value=f"{digests[1].split()[0]} rows now, {digests[0].split()[0]} then",
            hint="give the same rows, or another name for a new run; a DataFrame that draws at random needs a seed",
        )


def _prepare(df: DataFrame, selection: Selection) -> DataFrame:
    """The DataFrame to write: the columns as they will be read, the lengths of arrays, the split if there is one."""
    from pyspark.sql import functions as F

    values: dict[str, Column] = {}
    lengths: list[Column] = []
    positions: list[Column] = []
    for column in selection.columns:
        source = F.col(quoted(column.name))
        value = source.cast(column.spark_type)
        if selection.handle_invalid == "keep" and column.role == "feature" and column.dtype != "int64":
            nan = F.lit(float("nan")).cast(column.element_type)
            value = F.transform(value, lambda x: F.coalesce(x, nan)) if column.is_array else F.coalesce(value, nan)  # noqa: B023
        values[column.name] = value
        if column.is_array:
            length = F.when(source.isNotNull(), F.size(source))
            if column.may_be_sparse:
                length = F.col(quoted(f"{WIDTH}{column.name}"))
                positions.append(F.col(quoted(f"{POSITIONS}{column.name}")))
            lengths.append(length.alias(f"{_LENGTH}{len(lengths)}"))
    selected = [value.alias(name) for name, value in values.items()] + lengths + positions
    split = _split(selection, values)
    return df.select(*selected) if split is None else df.select(*selected, split.alias(_SPLIT))


def _split(selection: Selection, values: dict[str, Column]) -> Column | None:
    """Which split a row belongs to, or None when all rows are training rows."""
    from pyspark.sql import functions as F

    validation, seed = selection.validation, _seed_of_draw(selection.seed)
    split: Column | None = None
    if isinstance(validation, str):
        mark = F.col(quoted(validation))
        split = F.when(mark, _VALIDATION).when(~mark, _TRAIN).otherwise(_UNDEFINED)
    elif validation is not None and selection.group is not None:
        draw = F.pmod(F.xxhash64(F.col(quoted(selection.group)), F.lit(seed)), F.lit(1 << 31))
        split = F.when(draw < int(validation * (1 << 31)), _VALIDATION).otherwise(_TRAIN)
    elif validation is not None:
        split = F.when(F.rand(seed) < validation, _VALIDATION).otherwise(_TRAIN)
    if selection.handle_invalid == "skip":
        features = [column for column in selection.columns if column.role == "feature"]
        invalid = [is_invalid(values[column.name], column.dtype, column.is_array) for column in features]
        split = F.when(any_of(invalid), _DROPPED).otherwise(F.lit(_TRAIN) if split is None else split)
    return split


def _seed_of_draw(seed: int) -> int:
    """A seed of the draw's own: with the user's, a column rand(seed) of the DataFrame would be the draw."""
    digest = hashlib.sha256(f"hvdspark validation rows {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _write(prepared: DataFrame, selection: Selection, store: Store, path: str, num_workers: int) -> DatasetSpec:
    """Write the prepared DataFrame as the dataset `path`, read the footers, check them."""
    started = time.perf_counter()
    cache.collect_leftovers(store)
    counted = CountedRows(
        prepared.coalesce(max(_MAX_FILES, num_workers, 4 * session_of(prepared.sparkSession).parallelism()))
    )
    writer = counted.dataframe.write
    # Snappy, because stores are often across a network and it costs little; statistics are what the checks read.
    writer = writer.option("compression", "snappy").option("parquet.block.size", _ROW_GROUP_BYTES)
    writer = writer.option("parquet.column.statistics.enabled", True).option("maxRecordsPerFile", _MOST_FILE_ROWS)
    has_splits = _SPLIT in prepared.columns
    (writer.partitionBy(_SPLIT) if has_splits else writer).parquet(store.spark_uri(f"{path}/data"))
    written = time.perf_counter()
    # Spark writes at least one file, even if it has no rows, unless rows are told apart.
    if not has_splits and not any(name.endswith(".parquet") for name in store.list(f"{path}/data")):
        raise StoreError(
            "Spark wrote the data, but this process cannot see it",
            value=store.spark_uri(path),
            where="store_uri",
            hint="the store must be the same file system on the driver and on all executors",
        )
    directories = [f"data/{_SPLIT}={split}" if has_splits else "data" for split in range(4 if has_splits else 1)]
    used = read_footers(store, path, directories[:_DROPPED], prepared.sparkSession)
    train, validation = [*used.groups, RowGroups.of()][:2]
    unused = read_footers(store, path, directories[_DROPPED:], prepared.sparkSession)
    dropped, undefined = [*unused.rows, 0, 0][:2]
    counted.check(sum(used.rows) + dropped + undefined, store.spark_uri(f"{path}/data"))
    held_out = None if selection.validation is None else used.rows[_VALIDATION]
    check_sizes(used.rows[_TRAIN], held_out, dropped, undefined)
    specs = _check(selection, used, store, path)
    if dropped:
        logger.warning("dropped %d of %d rows that have an invalid feature", dropped, dropped + sum(used.rows))
        store.delete(f"{path}/{directories[_DROPPED]}")
    checked = time.perf_counter() - written
    logger.info("materialised %d rows: %.2f s to write, %.2f s to check", sum(used.rows), written - started, checked)
    return DatasetSpec(path, specs, train, validation, used.row_bytes, used.fingerprint(specs))


def _check(selection: Selection, used: Evidence, store: Store, path: str) -> tuple[ColumnSpec, ...]:
    """Check every column by its evidence, and give it its final layout."""
    columns, keep = selection.columns, selection.handle_invalid == "keep"
    files = [file for groups in used.groups for file in groups.paths]

    def count(name: str, condition: str) -> int:
        return count_where(store, path, files, name, condition)

    specs = []
    # After all columns one for the lengths of each array column, and then those of positions.
    beside = iter(used.columns[len(columns) + sum(column.is_array for column in columns) :])
    lengths = iter(enumerate(used.columns[len(columns) :]))
    for column, found in zip(columns, used.columns, strict=False):
        if not column.is_array:
            for part in column.by_role():
                check_column(part, found, keep, count)
            specs.append(_with_bounds(column, column.spec(None), found))
            continue
        number, length = next(lengths)
        for part in column.by_role():
            check_array(part, found, length, keep, count, f"{_LENGTH}{number}")
        sparse = column.may_be_sparse and next(beside).minimum is not None
        spec = column.spec((int(length.minimum or 0), int(length.maximum or 0)), sparse)
        specs.append(_with_bounds(column, spec, found))
    return tuple(specs)


def _with_bounds(column: SourceColumn, spec: ColumnSpec, found: ColumnEvidence) -> ColumnSpec:
    if "label" not in (column.role, *column.also) or found.unordered or found.minimum is None or found.maximum is None:
        return spec
    return dataclasses.replace(spec, minimum=float(found.minimum), maximum=float(found.maximum))
