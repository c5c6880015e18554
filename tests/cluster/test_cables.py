"""What the kernel says of a host whose cable is pulled, on hosts apart."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts as apart
from tests.cluster.standalone import Host

_WHY_NOT = apart.why_not()
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(bool(_WHY_NOT), reason=f"no hosts apart here: {_WHY_NOT}"),
]
NEAR, FAR = "near", "far"
# Accepts one connection and reads nothing.
LISTEN = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("listens", flush=True)
    connection, _ = server.accept()
    sys.stdin.read()
"""
# Says four times a second whose answers it waits for.
SEND = """
import os, socket, sys, time
from hvdspark.launch.sockets import unanswered
with socket.create_connection((sys.argv[1], 5000)) as connection:
    while True:
        connection.sendall(b"x")
        print(*unanswered(os.getpid()), flush=True)
        time.sleep(0.25)
"""


class Process:
    def __init__(self, host: Host, code: str, argument: str) -> None:
        command = [*host.prefix, sys.executable, "-c", code, argument]
        self._process = subprocess.Popen(
            command, cwd=apart.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._said: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 45
        while self._said.get(timeout=max(0.0, deadline - time.monotonic())) != line:
            pass

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line.strip())


@pytest.fixture
def hosts(nothing_left_behind: None) -> Iterator[apart.Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="hvdspark-cables-", dir="/var/tmp"))
    with apart.hosts(folder, (NEAR, FAR)) as made:
        yield made
    shutil.rmtree(folder)


def test_a_host_that_does_not_answer_is_known_until_it_does(hosts: apart.Hosts) -> None:
    far = Process(hosts.host(FAR), LISTEN, hosts.address(FAR))
    far.wait_for("listens")
    near = Process(hosts.host(NEAR), SEND, hosts.address(FAR))
    try:
        near.wait_for("")
        hosts.pull(FAR)
        near.wait_for(hosts.address(FAR))
        hosts.plug(FAR)
        near.wait_for("")
    finally:
        near.end()
        far.end()
