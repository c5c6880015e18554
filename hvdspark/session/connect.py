"""A Spark Connect client: no JVM, and a driver somewhere else. What it can know it asks over the DataFrame API."""

from __future__ import annotations

import contextlib
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hvdspark.errors import StoreError
from hvdspark.session.classic import LOOPBACK, is_local_master
from hvdspark.session.unchanged import Unproven

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# Where a server is that a client started for itself, or that runs beside it.
_HERE = ("localhost", LOOPBACK, "::1", "[::1]")
# What the server has told of the tasks of jobs by tag, while these are tagged: whether one of them has started.
_begun: dict[str, bool] = {}
_handlers: dict[str, Any] = {}


class ConnectSession:
    """The `Session` of a client."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark: Any = spark

    @staticmethod
    def of_this_process() -> SparkSession | None:
        """The one that is there, in whatever thread."""
        from pyspark.sql.connect import session

        found: SparkSession | None = session.SparkSession._get_default_session()  # type: ignore[assignment]
        return found

    def application(self) -> str:
        return str(self._spark.session_id)

    def master(self) -> str:
        return self.conf("spark.master")

    def runs_here(self) -> bool:
        return False

    def conf(self, key: str) -> str:
        return str(self._spark.conf.get(key, "") or "")

    def slots(self) -> int | None:
        return slots_of_master(self.master())

    def parallelism(self) -> int:
        return slots_of_master(self.master()) or 0

    def executor_hosts(self) -> list[str] | None:
        return None

    def busy_tasks(self) -> int:
        return 0

    def worker_python(self) -> str | None:
        return None

    def host(self) -> tuple[str, str] | None:
        server = str(self._spark.client.host)
        if server not in _HERE:
            own = address_towards(server)
        elif is_local_master(self.master()):
            own = LOOPBACK
        else:  # the server is on this machine, and this is how executors reach it
            own = self.conf("spark.driver.host") or LOOPBACK
        return None if own is None else (own, own)

    def pickled_broadcasts(self) -> dict[int, Any]:
        return {}  # Connect has none

    @contextlib.contextmanager
    def described(self, text: str, *, group: str = "", before: str = "") -> Iterator[None]:
        if not group:
            yield
            return
        self._spark.addTag(group)
        try:
            yield
        finally:
            with contextlib.suppress(Exception):  # the session itself may be gone
                self._spark.removeTag(group)

    def tag(self, tag: str) -> None:
        spark = self._spark

        def progress(stages: Iterable[Any], inflight_tasks: int, operation_id: str | None, done: bool) -> None:
            # In the thread that waits for an operation, whose tags tell which it is.
            if tag in spark.getTags():
                started = inflight_tasks > 0 or any(stage.num_completed_tasks for stage in stages)
                _begun[tag] = _begun.get(tag, False) or started

        spark.addTag(tag)
        _handlers[tag] = progress
        spark.registerProgressHandler(progress)

    def untag(self, tag: str) -> None:
        self._spark.removeTag(tag)
        _begun.pop(tag, None)
        if (progress := _handlers.pop(tag, None)) is not None:
            self._spark.removeProgressHandler(progress)

    def cancel(self, tag: str) -> None:
        self._spark.interruptTag(tag)

    def tasks_run(self, tag: str) -> bool | None:
        # The server tells what an operation does every few seconds (`spark.connect.progress.reportInterval`).
        return _begun.get(tag)

    def executors_that_leave(self, tag: str) -> list[str]:
        return []

    def add_python(self, path: str) -> None:
        self._spark.addArtifact(path, pyfile=True)

    def qualified(self, path: str) -> str:
        # Nothing asks for it, so it is read off what Spark says about a path that is not there.
        missing = f".hvdspark-{uuid.uuid4().hex}"
        found = self._missing_path(f"{path.rstrip('/')}/{missing}")
        if found is None or not found.endswith(f"/{missing}"):
            raise StoreError(
                "a Spark Connect server does not say on which file system this path is",
                value=path,
                hint="give it with its scheme, as in file:///data/x or s3a://bucket/x",
            )
        return found.removesuffix(f"/{missing}") or "/"

    def has_path(self, uri: str) -> bool:
        return self._missing_path(uri) is None

    def evidence(self, df: DataFrame) -> str | Unproven:
        return Unproven("a Spark Connect client does not see which files a plan reads")

    def same_plan(self, one: DataFrame, other: DataFrame) -> bool:
        try:
            return bool(one.sameSemantics(other))
        except Exception:  # one of them belongs to a session that has ended
            return False

    def counted(self, df: DataFrame) -> tuple[DataFrame, Callable[[str], int | None]]:
        # Not observed: that would leave the server's session an ObservationManager (see `counted.py`), which breaks
        # models of Spark ML in it. Read from the files' footers; that executors see the files is asked before.
        schema = df.schema  # as it is read, Spark starts no job to find it
        return df, lambda path: int(self._spark.read.schema(schema).parquet(path).count())

    def _missing_path(self, path: str) -> str | None:
        """What Spark calls a path that does not exist; None where it exists. Starts no job."""
        from pyspark.errors import PySparkException

        try:
            # Twice: of a single one, the server first writes into its log that it is no output of a stream.
            self._spark.read.format("binaryFile").load([path, path]).schema  # noqa: B018
        except PySparkException as error:
            if error.getCondition() == "PATH_NOT_FOUND":
                return str((error.getMessageParameters() or {}).get("path", ""))
            reason = str(error).splitlines()[0]
            raise StoreError("Spark knows no file system for this path", value=path, hint=reason) from error
        return None


def slots_of_master(master: str) -> int | None:
    """Task slots of `local`, `local[n]` and `local[n, failures]`; None for others. Pure."""
    if master == "local":
        return 1
    found = re.fullmatch(r"local\[\s*(\d+)\s*(,\s*\d+\s*)?\]", master)
    return None if found is None else int(found[1])


def address_towards(host: str) -> str | None:
    """This machine's address on the way to a host; None where there is no way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # UDP: only looks up the route, sends nothing
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
