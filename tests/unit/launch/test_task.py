"""A task sees its rank to its end whatever the network loses on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hvdspark.launch import child, rendezvous, task
from hvdspark.launch.child import RankProcess
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer
from tests.unit.launch.network import Relay

SECRET = "0123456789abcdef"
# A rank that says it is ready, waits for "go", and answers.
HEALTHY = "import sys; sys.path[:] = {path!r}; out, parent = {result_fd}, {parent_pid}; " + "; ".join(
    [
        "from hvdspark.launch import frames",
        "stream = open(out, 'wb')",
        "frames.write_frame(stream, frames.READY, b'')",
        "assert frames.read_frame(sys.stdin.buffer) == (frames.GO, b'')",
        "frames.write_frame(stream, frames.RESULT, b'trained')",
    ]
)


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", size=2, secret=SECRET)
    yield server
    server.close()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[RankProcess]:
    monkeypatch.setattr(child, "_BOOTSTRAP", HEALTHY)
    process = RankProcess(dict(os.environ), on_event=lambda event: None)
    yield process
    process.end()


def test_a_healthy_rank_survives_lost_messages(
    server: RendezvousServer, process: RankProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first try of each request is lost; then the connection is cut while the rank trains; then the report is lost.
    relay = Relay(server.port)
    lost: set[tuple[str, str]] = set()
    original = RendezvousClient._request

    def lossy(self: RendezvousClient, method: str, scope: str, key: str, *more: Any) -> Any:
        if (method, key) not in lost:
            lost.add((method, key))
            raise ConnectionResetError
        return original(self, method, scope, key, *more)

    monkeypatch.setattr(RendezvousClient, "_request", lossy)
    outcomes: list[Outcome] = []
    client = RendezvousClient("127.0.0.1", relay.port, SECRET)
    watching = threading.Thread(target=lambda: outcomes.append(task.see_to_its_end(process, client, 1)))
    watching.start()
    for connections in (1, 2, 3):
        relay.wait_for(connections)
        relay.cut()
    server.outcomes.ready(0)
    watching.join(timeout=30)
    assert outcomes == [Outcome("ok", result=b"trained", order=0)]
    assert {("PUT", "1"), ("PUT", "ready/1"), ("GET", "stop/1")} <= lost
    server.outcomes.record(0, Outcome("ok"))
    assert server.outcomes.wait_all(wait_s=0)
    relay.close()


def test_a_report_that_never_arrives_ends_nothing(
    server: RendezvousServer, process: RankProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(RendezvousClient, "record", unreachable)
    monkeypatch.setattr(rendezvous, "_RETRY_S", 0.3)
    monkeypatch.setattr(task, "_SILENT_S", 1.0)
    server.outcomes.ready(0)
    outcome = task.see_to_its_end(process, RendezvousClient("127.0.0.1", server.port, SECRET), 1)
    assert outcome.status == "ok", "the row of the task tells the driver"
    server.outcomes.record(0, Outcome("ok"))
    began = time.monotonic()
    task.keep_until_all_reported(server)  # the task of partition 0, whose own rank has ended
    assert time.monotonic() - began < 10


def test_the_rank_of_a_gang_that_fails_says_why_it_was_stopped(server: RendezvousServer, process: RankProcess) -> None:
    server.outcomes.record(0, Outcome("failed", "exception"))
    outcome = task.see_to_its_end(process, RendezvousClient("127.0.0.1", server.port, SECRET), 1)
    assert outcome.cause == "stopped because another rank failed"


def test_a_server_that_stays_away_stops_the_rank(
    server: RendezvousServer, process: RankProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "_SERVER_GONE_S", 1.0)
    monkeypatch.setattr(rendezvous, "_RETRY_S", 0.3)
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    server.close()
    assert "task of rank 0 could not be reached" in task.see_to_its_end(process, client, 1).cause
