"""One suite for every kind of session: `any_session` runs a function where there is a session of a kind.

Classic sessions are this process's. A process that has had one cannot have a Connect session as well (pyspark decides
once for each process which of the two `pyspark.sql.functions` and `pyspark.ml` speak to), so that one lives in a child.
The child can import neither py4j nor what of pyspark needs it, as where `pyspark-client` is installed. The server is
another process.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_START_S = 90
_NOT_OF_A_CLIENT = ("py4j", "pyspark.core")


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


class _Child:
    """A process of this module, which lives until `close`."""

    def __init__(self, role: str, settings: Mapping[str, str]) -> None:
        key = os.urandom(16)
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            host, port = listener.address
            command = [sys.executable, "-m", "tests.sessions", role, str(host), str(port)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
            assert self._process.stdin is not None
            self._process.stdin.write(key)
            self._process.stdin.close()
            self.connection = listener.accept()
        self.connection.send(dict(settings))
        assert self.connection.poll(_START_S), f"the {role} does not start"
        self.started: str = self.connection.recv()

    def close(self) -> None:
        self.connection.close()
        self._process.wait(timeout=30)


class ConnectServer(_Child):
    """A Spark Connect server, as `start-connect-server.sh` makes one.

    Args:
        settings: with its master.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__("server", settings)
        self.remote = f"sc://127.0.0.1:{self.started}"


class ConnectClient(_Child):
    """A Connect session in a process that has no JVM."""

    def __init__(self, server: ConnectServer) -> None:
        super().__init__("client", {"remote": server.remote})
        self._calls = 0

    def call(self, case: Callable[..., None], *arguments: Any) -> None:
        self._calls += 1
        self.connection.send((self._calls, case.__module__, case.__qualname__, arguments))
        number, failure = self.connection.recv()
        while number < self._calls:  # of a test that has run out of time meanwhile
            number, failure = self.connection.recv()
        assert not failure, f"in the Connect session:\n{failure}"


class _Refused(importlib.abc.MetaPathFinder):
    """Finds that packages are not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in _NOT_OF_A_CLIENT):
            raise ModuleNotFoundError(f"No module named '{fullname}'", name=fullname)


def _serve(connection: Connection) -> None:
    from pyspark.sql import SparkSession

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    settings = {
        "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": port,
        **connection.recv(),
    }
    spark = SparkSession.builder.appName("hvdspark tests").config(map=settings).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    connection.send(port)
    try:
        connection.recv()
    except EOFError:
        spark.stop()


def _ask(connection: Connection) -> None:
    """Run what one is told until the other end is closed."""
    sys.meta_path.insert(0, _Refused())
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote(connection.recv()["remote"]).getOrCreate()
    spark.range(1).count()
    connection.send("")
    try:
        while True:
            number, *case = connection.recv()
            connection.send((number, _failure(spark, *case)))
    except EOFError:
        spark.stop()


def _failure(spark: SparkSession, module: str, name: str, arguments: tuple[Any, ...]) -> str:
    try:
        case: Any = importlib.import_module(module)
        for part in name.split("."):
            case = getattr(case, part)
        case(spark, *arguments)
    except BaseException:
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    roles = {"server": _serve, "client": _ask}
    roles[sys.argv[1]](Client((sys.argv[2], int(sys.argv[3])), authkey=sys.stdin.buffer.read()))
