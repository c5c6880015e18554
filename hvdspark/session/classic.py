"""A session whose driver is this process: it has a JVM, and says everything."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hvdspark.errors import ConfigurationError, StoreError
from hvdspark.session.counted import counted
from hvdspark.session.plans import same_plan
from hvdspark.session.unchanged import Unproven, evidence

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

LOOPBACK = "127.0.0.1"
_MOST_TASKS = 1 << 20
_DESCRIPTION, _GROUP = "spark.job.description", "spark.jobGroup.id"


class ClassicSession:
    """The `Session` of a driver."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    @staticmethod
    def of_this_process() -> SparkSession | None:
        """The one that is there, in whatever thread."""
        from pyspark import SparkContext
        from pyspark.sql import SparkSession

        return None if SparkContext._active_spark_context is None else SparkSession.builder.getOrCreate()

    def application(self) -> str:
        return str(self._spark.sparkContext.applicationId)

    def master(self) -> str:
        return str(self._spark.sparkContext.master or "")

    def runs_here(self) -> bool:
        return is_local_master(self.master())

    def conf(self, key: str) -> str:
        return str(self._spark.sparkContext.getConf().get(key) or self._spark.conf.get(key, "") or "")

    def slots(self) -> int | None:
        context = self._context()
        return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))

    def parallelism(self) -> int:
        return int(self._spark.sparkContext.defaultParallelism)

    def executor_hosts(self) -> list[str] | None:
        return [str(info.host()) for info in self._context().statusTracker().getExecutorInfos()]

    def busy_tasks(self) -> int:
        tracker = self._spark.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        return sum(stage.numActiveTasks for stage in stages if stage is not None)

    def worker_python(self) -> str | None:
        return str(self._spark.sparkContext.pythonExec)

    def host(self) -> tuple[str, str] | None:
        if self.runs_here():
            return LOOPBACK, LOOPBACK
        conf = self._spark.sparkContext.getConf()
        reachable = conf.get("spark.driver.host") or LOOPBACK
        return conf.get("spark.driver.bindAddress") or reachable, reachable

    def pickled_broadcasts(self) -> dict[int, Any]:
        # In a pickle a broadcast variable is a number. pyspark notes which ones it meets, for the plan to take along.
        context: Any = self._spark.sparkContext
        found = {variable._jbroadcast.id(): variable for variable in context._pickled_broadcast_vars}
        context._pickled_broadcast_vars.clear()
        if found and context._encryption_enabled:
            raise ConfigurationError(
                "broadcast variables do not reach ranks where Spark encrypts its files",
                value="true",
                where="spark.io.encryption.enabled",
                hint="pass the value itself, or put it into the store",
            )
        return found

    @contextlib.contextmanager
    def described(self, text: str, *, group: str = "", before: str = "") -> Iterator[None]:
        context = self._spark.sparkContext
        outer, outer_group = context.getLocalProperty(_DESCRIPTION), context.getLocalProperty(_GROUP)
        context.setLocalProperty(_DESCRIPTION, ", ".join(part for part in (outer or before, text) if part))
        if group and not outer_group:
            context.setLocalProperty(_GROUP, group)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the session itself may be gone
                context.setLocalProperty(_DESCRIPTION, outer)  # type: ignore[arg-type]  # None takes it away
                context.setLocalProperty(_GROUP, outer_group)  # type: ignore[arg-type]

    def tag(self, tag: str) -> None:
        self._spark.sparkContext.addJobTag(tag)

    def untag(self, tag: str) -> None:
        self._spark.sparkContext.removeJobTag(tag)

    def cancel(self, tag: str) -> None:
        self._spark.sparkContext.cancelJobsWithTag(tag)

    def tasks_run(self, tag: str) -> bool | None:
        # The tasks themselves are counted. What Spark says of their stage is as old as the next heartbeat (10 s) where
        # its tasks start within `spark.ui.liveUpdate.period` after it (`AppStatusListener.maybeUpdate`).
        context = self._context()
        tracker, store = context.statusTracker(), context.statusStore()
        for job in tracker.getJobIdsForTag(tag):
            info = tracker.getJobInfo(job)
            for stage in info.get().stageIds() if info.isDefined() else ():
                found = tracker.getStageInfo(stage)
                if found.isDefined() and store.taskCount(stage, found.get().currentAttemptId()) > 0:
                    return True
        return False

    def executors_that_leave(self, tag: str) -> list[str]:
        context = self._context()
        scheduler = context.taskScheduler()
        if scheduler.executorsPendingDecommission().isEmpty():
            return []
        tracker, store, found = context.statusTracker(), context.statusStore(), set()
        for job in tracker.getJobIdsForTag(tag):
            info = tracker.getJobInfo(job)
            for stage in info.get().stageIds() if info.isDefined() else ():
                attempt = tracker.getStageInfo(stage)
                if attempt.isDefined():
                    tasks = store.taskList(stage, attempt.get().currentAttemptId(), _MOST_TASKS)
                    found |= {str(tasks.apply(number).executorId()) for number in range(tasks.size())}
        return sorted(name for name in found if scheduler.isExecutorDecommissioned(name))

    def add_python(self, path: str) -> None:
        self._spark.sparkContext.addPyFile(path)

    def qualified(self, path: str) -> str:
        hadoop_path, filesystem = self._hadoop(path)
        return str(filesystem.makeQualified(hadoop_path).toString())

    def has_path(self, uri: str) -> bool:
        hadoop_path, filesystem = self._hadoop(uri)
        return bool(filesystem.exists(hadoop_path))

    def evidence(self, df: DataFrame) -> str | Unproven:
        return evidence(df)

    def same_plan(self, one: DataFrame, other: DataFrame) -> bool:
        return same_plan(one, other)

    def counted(self, df: DataFrame) -> tuple[DataFrame, Callable[[str], int | None]]:
        observed, rows = counted(df)
        return observed, lambda path: rows()

    def _context(self) -> Any:
        return self._spark.sparkContext._jsc.sc()

    def _hadoop(self, path: str) -> tuple[Any, Any]:
        """Hadoop's Path and the FileSystem that it is on."""
        jvm, session = self._spark._jvm, self._spark._jsparkSession
        assert jvm is not None
        try:
            hadoop_path = jvm.org.apache.hadoop.fs.Path(path)
            return hadoop_path, hadoop_path.getFileSystem(session.sessionState().newHadoopConf())
        except Exception as error:  # of py4j
            reason = str(getattr(error, "java_exception", error)).splitlines()[0]
            raise StoreError("Spark knows no file system for this path", value=path, hint=reason) from error


def is_local_master(master: str) -> bool:
    """Whether tasks run inside the driver (`local[n]`), where Spark does not schedule GPUs."""
    return master == "local" or master.startswith("local[")
