"""A standalone Spark cluster: a master and workers, each a process of pyspark's own `spark-class`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_START_S = 240.0  # on a machine that has other work, too
_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"


@dataclass(frozen=True)
class Host:
    """Where a process of the cluster runs.

    Attributes:
        address: under which the others reach it.
        prefix: what its command lines begin with.
    """

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@dataclass
class Standalone:
    """A running cluster.

    Attributes:
        home: SPARK_HOME of all its processes.
        scratch: folder of logs, and of what the workers write.
        master: where its master is.
        workers: their processes, in the order in which they were started.
    """

    home: Path
    scratch: Path
    master: Host
    port: int = 0
    web_port: int = 0
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"spark://{self.master.address}:{self.port}"

    def start_master(self) -> None:
        self.port, self.web_port = 7077 if self.master.prefix else _free_port(), 8080
        if not self.master.prefix:
            self.web_port = _free_port()
        where = ("--host", self.master.address, "--port", str(self.port), "--webui-port", str(self.web_port))
        self._start(self.master, "master", (_MASTER, *where))

    def start_worker(self, host: Host, cores: int, name: str) -> None:
        """A worker with 1 GB for each core. Its executors end with it."""
        size = ("--cores", str(cores), "--memory", f"{cores}g", "--work-dir", str(self.scratch / name))
        where = ("--host", host.address, "--webui-port", "0")
        self.workers.append(self._start(host, name, (_WORKER, *size, *where, self.url)))

    def alive(self) -> int:
        """Workers that the master's page shows as alive."""
        address = f"http://{self.master.address}:{self.web_port}/json/"
        command = [*self.master.prefix, "curl", "--silent", "--max-time", "5", address] if self.master.prefix else []
        with contextlib.suppress(OSError, ValueError):
            if command:
                text = subprocess.run(command, capture_output=True, check=False).stdout.decode()
            else:
                text = urllib.request.urlopen(address, timeout=5).read().decode()
            return int(json.loads(text)["aliveworkers"])
        return -1

    def wait_for_workers(self, count: int, wait_s: float = _START_S) -> None:
        """Raises TimeoutError with the end of the logs: at once, where too few are left that could be alive."""
        started_s = time.monotonic()
        while (alive := self.alive()) != count:
            are_gone = sum(worker.poll() is None for worker in self.workers) < count
            waited_s = time.monotonic() - started_s
            if are_gone or waited_s > wait_s:
                logs = "\n".join(f"== {path.name}\n{path.read_text()[-1500:]}" for path in self.scratch.glob("*.log"))
                raise TimeoutError(f"{alive} workers of {count} after {waited_s:.0f} s\n{logs}")
            time.sleep(0.2)

    def stop(self) -> None:
        for process in reversed(self._processes):
            kill_tree(process.pid)
            process.wait(timeout=30)

    def _start(self, host: Host, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "SPARK_HOME": str(self.home),
            "SPARK_LOCAL_IP": host.address,
            "SPARK_DAEMON_MEMORY": "256m",
            "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
            "SPARK_LOCAL_DIRS": str(self.scratch / f"{name}-local"),
        }
        self.scratch.mkdir(parents=True, exist_ok=True)
        with (self.scratch / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*host.prefix, str(self.home / "bin/spark-class"), *arguments],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._processes.append(process)
        return process


@contextlib.contextmanager
def standalone(
    home: Path, scratch: Path, workers: Sequence[Host], cores: int, master: Host | None = None
) -> Iterator[Standalone]:
    """A cluster of these workers, `worker-0`, `worker-1`, ..., all of which are registered."""
    cluster = Standalone(home, scratch, master or Host())
    try:
        cluster.start_master()
        for number, host in enumerate(workers):
            cluster.start_worker(host, cores, f"worker-{number}")
        cluster.wait_for_workers(len(workers))
        yield cluster
    finally:
        cluster.stop()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all below it; the process first, so that it replaces none of them."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        below = process.children(recursive=True)
        os.kill(pid, signal.SIGKILL)
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
