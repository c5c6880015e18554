"""A real MLflow server for tests, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_START_S = 100.0


@dataclass
class MlflowServer:
    """A server that runs."""

    uri: str
    process: subprocess.Popen[str]

    def end(self) -> None:
        """Kill the server and its children, by their ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.process.pid)
            for one in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        self.process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int = 0) -> Iterator[MlflowServer]:
    """A server that keeps runs and artifacts in a folder; it is ended with the context.

    Args:
        port: of the loopback interface; 0 for one that is free.
    """
    port = port or _free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else it keeps processes for jobs of its own
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, **quiet}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    server = MlflowServer(uri, process)
    said: list[str] = []
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(process, said, ready), name="mlflow-server-output", daemon=True)
    reader.start()
    try:
        if not ready.wait(_START_S) or process.poll() is not None:
            raise AssertionError("the MLflow server did not start:\n" + "".join(said))
        yield server
    finally:
        server.end()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen[str], said: list[str], ready: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Application startup complete" in line:
            ready.set()
    ready.set()  # it has ended


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
