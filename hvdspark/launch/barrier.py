"""Ranks as tasks of a barrier result stage of Spark, one for each: the driver's side and the executors'.

Spark never retries such a stage ("Could not recover from a failed barrier ResultStage"), so restarts are the
supervisor's.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hvdspark.errors import StartTimeoutError
from hvdspark.launch import session
from hvdspark.launch.addresses import host_of
from hvdspark.launch.interrupt import cancel_jobs, interruptible, new_tag
from hvdspark.launch.job_errors import explain
from hvdspark.launch.line import Held, Line, Waiting
from hvdspark.launch.memory import check_address_space, memory_terms
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.protocol import DriverAddress, Heard, LaunchSpec, Program, Seat, Slots
from hvdspark.launch.task import Place, run_task
from hvdspark.launch.workers import check_workers
from hvdspark.launch.world_sizes import WorldSizes
from hvdspark.session import session_of

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext
    from pyspark.sql import Row, SparkSession

_SCHEMA = "rank int, outcome string, sequence int, chunk binary"
_ARROW_SCHEMA = pa.schema(
    [("rank", pa.int32()), ("outcome", pa.string()), ("sequence", pa.int32()), ("chunk", pa.binary())]
)
# Spark Connect caps a message at 4 MiB (TorchDistributor sends 4 KiB rows for the same reason).
_CHUNK_BYTES = 1 << 20
# Of applications, by their id.
_lines: dict[str, Line] = {}


class BarrierLauncher:
    """The `Launcher` of a Spark session, classic or Connect.

    Args:
        go_on: called every second while ranks wait in line; raises where they are not wanted any more.
    """

    def __init__(self, spark: SparkSession, go_on: Callable[[], None] = lambda: None) -> None:
        self._spark, self._go_on = spark, go_on
        self._broadcasts: dict[int, Any] = {}

    def check(self, world_size: int, device: str, start_timeout_s: float) -> None:
        """Refuse a session in which `world_size` ranks cannot run.

        Raises:
            What `session.check_session`, `memory.check_address_space`, `memory.memory_terms` and, in clusters,
            `workers.check_workers` raise.
        """
        session.check_session(self._spark, world_size, device)
        check_address_space(self._spark)
        memory_terms(self._spark, world_size)
        if not session_of(self._spark).runs_here():
            check_workers(self._spark, world_size, start_timeout_s)

    @contextlib.contextmanager
    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> Iterator[Seat]:
        line = _lines.setdefault(session_of(self._spark).application(), Line())

        def total() -> int | None:
            self._go_on()
            return _slots(self._spark)

        with line.turn(sizes.least, total, on_wait, most=sizes.most) as held:
            yield BarrierSeat(self._spark, held)

    def driver_address(self) -> DriverAddress | None:
        return session.driver_address(self._spark)

    def pickled(self, program: Program) -> bytes:
        import cloudpickle

        text: bytes = cloudpickle.dumps(program)
        self._broadcasts = session_of(self._spark).pickled_broadcasts()
        return text

    def job(self, spec: LaunchSpec) -> BarrierJob:
        limited = replace(spec, memory=memory_terms(self._spark, spec.world_size))
        return BarrierJob(self._spark, limited, self._broadcasts)


class BarrierSeat:
    """The `Seat` of a gang of a session."""

    def __init__(self, spark: SparkSession, held: Held) -> None:
        self._spark, self._held = spark, held

    def slots(self, running: int = 0) -> Slots | None:
        there_are = _slots(self._spark)
        if there_are is None:
            return None
        share = self._held.share(there_are)
        try:
            busy = session_of(self._spark).busy_tasks()
        except Exception:  # as above
            busy = 0
        return Slots(share, min(share, max(0, there_are - max(0, busy - running))))

    def hold(self, ranks: int) -> None:
        self._held.hold(ranks)


def _slots(spark: SparkSession) -> int | None:
    """Slots of the session; None where it cannot say, as when it has ended: then the job says so."""
    try:
        return session.total_slots(spark)
    except Exception:  # of py4j, by what is left of the session
        return None


class BarrierJob:
    """One barrier job."""

    def __init__(self, spark: SparkSession, spec: LaunchSpec, broadcasts: Mapping[int, Any]) -> None:
        self._spark, self._spec, self._broadcasts = spark, spec, broadcasts
        self._tag = new_tag()

    def run(self) -> dict[int, Outcome]:
        # `broadcasts` must be in the closure as they are, for Spark to bring them to the tasks.
        spec, broadcasts, local_mode = self._spec, self._broadcasts, session.is_local(self._spark)

        def task(_: Iterable[Any]) -> Iterable[pa.RecordBatch]:
            return run_barrier_task(spec, broadcasts, local_mode)

        # A bare collect: a shuffle behind the barrier would make Spark retry it, without anyone agreeing on a state.
        size = spec.world_size
        stage = self._spark.range(0, size, 1, size).mapInArrow(task, _SCHEMA, barrier=True)
        with session_of(self._spark).described(f"generation {spec.generation}", before="hvdspark run"):
            return _outcomes(interruptible(self._spark, stage.collect, self._tag))

    def has_begun(self) -> bool | None:
        return session_of(self._spark).tasks_run(self._tag)

    def leaving(self) -> Sequence[str]:
        return session_of(self._spark).executors_that_leave(self._tag)

    def cancel(self) -> None:
        cancel_jobs(self._spark, self._tag)

    def explain(self, error: Exception, heard: Heard) -> Exception:
        return explain(error, heard)


def run_barrier_task(spec: LaunchSpec, broadcasts: Mapping[int, Any], local_mode: bool) -> Iterator[pa.RecordBatch]:
    """Body of one barrier task; yields the rows of `_SCHEMA`.

    Args:
        broadcasts: broadcast variables in the program, by id.
        local_mode: Spark runs in the driver's process and does not schedule GPUs.
    """
    from pyspark import BarrierTaskContext, SparkFiles  # a client of Spark Connect may have neither

    context = BarrierTaskContext.get()
    gpus = context.resources().get("gpu")
    assigned = list(gpus.addresses) if gpus else []
    files = SparkFiles.getRootDirectory()
    place = Place(
        partition=context.partitionId(),
        addresses=[host_of(info.address) for info in context.getTaskInfos()],
        threads=context.cpus(),
        gpus=assigned,
        gpu_scheduled=bool(assigned) or local_mode,
        meet=lambda text: all_gather(context, text, spec.start_timeout_s),
        files=files if broadcasts or os.listdir(files) else None,
        broadcasts={str(key): variable._path for key, variable in broadcasts.items()},
        scratch=_scratch(os.environ.get("SPARK_LOCAL_DIRS", "")),
    )
    world, outcome = run_task(spec, place)
    yield from _rows(world.rank, outcome)


def _scratch(folders: str) -> str | None:
    """The first of the directories for blocks of this executor, which Spark deletes with it; those of Python, too, lie
    there."""
    return next((folder for folder in folders.split(",") if folder and os.path.isdir(folder)), None)


def all_gather(context: BarrierTaskContext, message: str, limit_s: float) -> list[str]:
    """Collective of the tasks: `context.allGather`, which by itself waits for a year (spark.barrier.sync.timeout).

    It costs about a second, because BarrierTaskContext polls once a second. Raises StartTimeoutError.
    """
    answers: list[str] = []
    errors: list[BaseException] = []

    def gather() -> None:
        try:
            answers.extend(context.allGather(message))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=gather, name="hvdspark-gather", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not answers:
        raise StartTimeoutError(f"not all tasks of the barrier stage have started Python after {limit_s:g} s")
    return answers


def _rows(rank: int, outcome: Outcome) -> Iterator[pa.RecordBatch]:
    result = outcome.result
    for sequence, start in enumerate(range(0, max(len(result), 1), _CHUNK_BYTES)):
        yield pa.RecordBatch.from_pydict(
            {
                "rank": [rank],
                "outcome": [json.dumps(outcome.without_result()) if sequence == 0 else ""],
                "sequence": [sequence],
                "chunk": [result[start : start + _CHUNK_BYTES]],
            },
            schema=_ARROW_SCHEMA,
        )


def _outcomes(rows: Iterable[Row]) -> dict[int, Outcome]:
    """By rank, from the rows of all tasks."""
    chunks: dict[int, list[bytes]] = {}
    others: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["rank"], row["sequence"])):
        chunks.setdefault(row["rank"], []).append(bytes(row["chunk"]))
        if row["sequence"] == 0:
            others[row["rank"]] = json.loads(row["outcome"])
    return {rank: Outcome(**values, result=b"".join(chunks[rank])) for rank, values in others.items()}
