"""Files of sharded embedding tables, which are too many bytes for the driver: executors copy and check them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyspark.sql import SparkSession

from hvdspark.artifact.directory import verify_file
from hvdspark.artifact.tables import table_files
from hvdspark.errors import CheckpointError
from hvdspark.session import session_of
from hvdspark.store import Store

Action = Callable[[dict[str, Any]], None]

# Small tables are as many files as large ones, and a Spark task costs more than a small file.
_TASKS_PER_CORE = 4
# Where nobody says how many cores there are.
_TASKS = 64
_TASK_BYTES = 64 << 20


def copy_tables(
    session: SparkSession,
    source: Store,
    directory: str,
    target: Store,
    target_directory: str,
    tables: Sequence[Mapping[str, Any]],
) -> None:
    """Copy the files of a manifest's tables to another directory, in one Spark job, and compare their checksums there.

    Raises:
        CheckpointError: a file is missing or damaged.
        StoreError: a file cannot be written.
    """

    def copy(entry: dict[str, Any]) -> None:
        target.copy_from(source, f"{directory}/{entry['path']}", f"{target_directory}/{entry['path']}")
        verify_file(target, f"{target_directory}/{entry['path']}", entry)

    _for_each(session, copy, table_files(tables))


def verify_tables(session: SparkSession, store: Store, directory: str, tables: Sequence[Mapping[str, Any]]) -> None:
    """Compare the files of a manifest's tables with their checksums, in one Spark job.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    _for_each(session, lambda entry: verify_file(store, f"{directory}/{entry['path']}", entry), table_files(tables))


def _for_each(session: SparkSession, action: Action, entries: Sequence[dict[str, Any]]) -> None:
    if not entries:
        return

    def attempt(batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            failed = []
            for number in batch.column(0).to_pylist():
                try:
                    action(entries[number])
                except CheckpointError as error:  # would not help to try again, and would reach the driver as a trace
                    failed.append(str(error))
            yield pa.RecordBatch.from_pydict({"failed": pa.array(failed, pa.string())})

    large = sum(entry["bytes"] for entry in entries) // _TASK_BYTES
    tasks = min(len(entries), max(_TASKS_PER_CORE * session_of(session).parallelism() or _TASKS, large))
    asked = session.range(0, len(entries), 1, tasks).mapInArrow(attempt, "failed string")
    failed = [row["failed"] for row in asked.collect()]
    if failed:
        raise CheckpointError(f"{len(failed)} of {len(entries)} files of embedding tables", value=failed[0])
