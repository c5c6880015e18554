"""One suite for every kind of session: `any_session` runs a function where there is a session of a kind.

Classic sessions are this process's. A process that has had one cannot have a Connect session as well (pyspark decides
once for each process which of the two `pyspark.sql.functions` and `pyspark.ml` speak to), so that one lives in a child,
which starts its own server, as `SparkSession.builder.remote("local[2]")` does.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_START_S = 90


class AnySession(Protocol):
    """Where a session is."""

    def call(self, case: Callable[..., None], *arguments: Any) -> None:
        """`case(spark, *arguments)` in the main thread of the process that has the session. AssertionError if it fails.

        Args:
            case: a function of a test module, by its name.
            arguments: plain data.
        """


class Here:
    """A session of this process."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark

    def call(self, case: Callable[..., None], *arguments: Any) -> None:
        case(self._spark, *arguments)


class Child:
    """A Connect session in a process of its own, which lives until `close`."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        key = os.urandom(16)
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            host, port = listener.address
            command = [sys.executable, "-m", "tests.sessions", str(host), str(port)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
            assert self._process.stdin is not None
            self._process.stdin.write(key)
            self._process.stdin.close()
            self._connection = listener.accept()
        self._connection.send(dict(settings))
        self._answer(_START_S)

    def call(self, case: Callable[..., None], *arguments: Any) -> None:
        self._connection.send((case.__module__, case.__qualname__, arguments))
        self._answer(None)

    def close(self) -> None:
        self._connection.close()
        self._process.wait(timeout=30)

    def _answer(self, limit_s: float | None) -> None:
        assert self._connection.poll(limit_s), "the Connect session does not start"
        failure = self._connection.recv()
        assert not failure, f"in the Connect session:\n{failure}"


def main(host: str, port: int) -> None:
    """The child: a Connect session that runs what it is told until the other end is closed."""
    connection = Client((host, port), authkey=sys.stdin.buffer.read())
    settings = connection.recv()
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote("local[2]").config(map=settings).getOrCreate()
    connection.send("")
    try:
        while True:
            _run(spark, connection, *connection.recv())
    except EOFError:
        spark.stop()


def _run(spark: SparkSession, connection: Connection, module: str, name: str, arguments: tuple[Any, ...]) -> None:
    failure = ""
    try:
        case = importlib.import_module(module)
        for part in name.split("."):
            case = getattr(case, part)
        case(spark, *arguments)  # type: ignore[operator]
    except BaseException:
        failure = traceback.format_exc()
    connection.send(failure)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
