"""The gang's server: a store that only the gang can use, and the decision who is to blame."""

from __future__ import annotations

import http.client
import os
import queue
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvdspark.launch import rendezvous
from hvdspark.launch.host_store import HostStore
from hvdspark.launch.outcomes import Outcomes
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer, retried
from hvdspark.specs import World

SECRET = "0123456789abcdef"
OWN_FAULT = {"status": "failed", "kind": "exception"}
PEER_LOST = {"status": "failed", "kind": "peer_lost"}


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    server = RendezvousServer("127.0.0.1", size=3, secret=SECRET)
    yield server
    server.close()


def request(server: RendezvousServer, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, body)
    response = connection.getresponse()
    result = response.status, response.read()
    connection.close()
    return result


def test_horovods_protocol(server: RendezvousServer) -> None:
    path = f"/{SECRET}:0/global/0"
    assert request(server, "GET", path) == (404, b"")
    assert request(server, "PUT", path, b"\x00\xff") == (200, b"")
    assert request(server, "GET", path) == (200, b"\x00\xff")
    assert request(server, "DELETE", path)[0] == 200


@pytest.mark.parametrize(
    "path", ["/global/0", "/wrong:0/global/0", f"/{SECRET}:1/global/0", f"/{SECRET}/global/0", "/"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_without_the_secret_nothing_is_read_or_written(server: RendezvousServer, method: str, path: str) -> None:
    request(server, "PUT", f"/{SECRET}:0/global/0", b"original")
    assert request(server, method, path, b"forged" if method == "PUT" else None) == (403, b"")
    assert request(server, "GET", f"/{SECRET}:0/global/0") == (200, b"original")


def test_a_body_is_not_read_before_the_secret_is_known(server: RendezvousServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
        stranger.sendall(b"PUT /wrong:0/global/0 HTTP/1.1\r\nContent-Length: 400000000\r\n\r\n")
        assert stranger.recv(100).startswith(b"HTTP/1.0 403"), "answered, although the body is still to come"
        with pytest.raises(ConnectionError):  # and what comes is not read for long
            stranger.sendall(bytes(400 << 20))


@pytest.mark.parametrize("length", ["400000000", "-1"])
def test_not_even_the_gang_sends_bodies_without_a_limit(server: RendezvousServer, length: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"PUT /{SECRET}:0/global/0 HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.0 413")


@pytest.mark.parametrize("line", [b"GET /\xff\xfe:0/global/0 HTTP/1.1\r\n", b"\x80" * 5000, b"\r\n", b"GET\r\n"])
def test_any_bytes_of_strangers_are_refused(server: RendezvousServer, line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
        stranger.sendall(line)
        assert stranger.recv(100).startswith(b"HTTP/1.0 403")


def test_a_lost_request_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_RETRY_S", 0.5)
    attempts = []

    def lost_twice() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionResetError
        return "arrived"

    assert retried(lost_twice) == "arrived"
    with pytest.raises(ConnectionResetError):
        retried(lambda: (_ for _ in ()).throw(ConnectionResetError()))


def test_reports_have_an_order_that_needs_no_clocks(server: RendezvousServer) -> None:
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    assert [client.record(rank, PEER_LOST) for rank in (2, 0, 2, 1)] == [0, 1, 0, 2]


def test_ranks_begin_together(server: RendezvousServer) -> None:
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    answers: queue.Queue[bool] = queue.Queue()
    waiting = threading.Thread(target=lambda: answers.put(client.all_ready()))
    waiting.start()
    for rank in range(3):
        assert answers.empty()
        client.ready(rank)
    assert answers.get(timeout=5)
    waiting.join(timeout=5)


def test_ranks_that_are_never_ready_are_named() -> None:
    outcomes = Outcomes(size=3, start_timeout_s=0.2)
    outcomes.ready(1)
    cause = outcomes.stop_cause(wait_s=10)
    assert cause is not None
    assert cause["kind"] == "start_timeout"
    assert "ranks [0, 2] were not ready" in cause["cause"]
    started = Outcomes(size=1, start_timeout_s=0.0)
    started.ready(0)
    assert not started.must_stop(wait_s=0.1), "once all are ready, training takes as long as it takes"


def test_the_rest_is_silent() -> None:
    outcomes = Outcomes(size=2)
    outcomes.record(0, {"status": "ok", "kind": ""})
    assert not outcomes.rest_is_silent(silent_s=60)
    assert outcomes.rest_is_silent(silent_s=0)


def test_256_ranks_meet_in_one_round_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank sets its address and asks for all others, as Horovod does; the gang's server is asked 3 times a rank.

    Horovod's own questions (2 for each peer) are put for some of the ranks. Bodies have the size that Gloo's have.
    """
    size, asked = 256, []
    original = RendezvousClient._request

    def counted(self: RendezvousClient, method: str, scope: str, key: str, body: bytes | None = None) -> Any:
        asked.append((method, scope))
        return original(self, method, scope, key, body)

    monkeypatch.setattr(RendezvousClient, "_request", counted)
    server = RendezvousServer("127.0.0.1", size, SECRET)
    gang = RendezvousClient("127.0.0.1", server.port, SECRET)
    addresses = [(os.urandom(16) + bytes(120)) * (size - 1) for _ in range(size)]
    worlds = [World(rank, size, rank % 8, 8, rank // 8, size // 8, f"h{rank // 8}") for rank in range(size)]
    began = time.monotonic()
    wrong: list[int] = []
    connected = threading.Barrier(size)

    def meet(rank: int) -> None:
        store = HostStore(gang, worlds[rank], SECRET)
        try:
            assert horovod_request(store.port, "PUT", rank, addresses[rank]) == (200, b"")
            asks = range(size) if rank % 64 == 1 else [(rank + 1) % size]
            for peer in asks:
                answers = [horovod_request(store.port, "GET", peer) for _ in range(2)]
                wrong.extend(rank for answer in answers if answer != (200, addresses[peer]))
            connected.wait(timeout=60)  # Gloo's barrier
            assert horovod_request(store.port, "DELETE", rank) == (200, b"")
        finally:
            store.close()

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(meet, range(size)))
    server.close()
    assert not wrong
    assert len(asked) == 3 * size, "a PUT, one question for all addresses, a DELETE"
    assert time.monotonic() - began < 60


def horovod_request(port: int, method: str, key: int, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, f"/{SECRET}:0/global/{key}", body)
    response = connection.getresponse()
    result = response.status, response.read()
    connection.close()
    return result


@pytest.mark.parametrize(
    ("scope", "peers"), [("global", 4), ("local_h-0", 2), ("cross_1", 3), ("global_process_set_hash_1f", 2)]
)
def test_a_rank_waits_for_all_addresses_of_a_scope(scope: str, peers: int) -> None:
    server = RendezvousServer("127.0.0.1", 4, SECRET)
    gang = RendezvousClient("127.0.0.1", server.port, SECRET)
    store = HostStore(gang, World(1, 4, 1, 2, 0, 3, "h"), SECRET)
    path = f"/{SECRET}:0/{scope}/"
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", store.port, timeout=20)
        connection.request("GET", f"{path}{peers - 1}")
        answers.put(connection.getresponse().read())
        connection.close()

    waiting = threading.Thread(target=ask)
    for key in range(peers - 1):
        gang.put(scope, str(key), zlib.compress(b"early"))
    waiting.start()
    gang.put(scope, str(peers - 1), zlib.compress(b"late"))
    waiting.join(timeout=20)
    server.close()
    store.close()
    assert answers.get(timeout=5) in (b"late", b"")  # b"": not found; Horovod asks again


def test_horovods_client_is_pointed_at_the_secret() -> None:
    environment = RendezvousClient("10.0.0.1", 4567, SECRET).horovod_environment()
    url = "http://{HOROVOD_GLOO_RENDEZVOUS_ADDR}:{HOROVOD_GLOO_RENDEZVOUS_PORT}/global/0".format(**environment)
    assert url == f"http://10.0.0.1:4567/{SECRET}:0/global/0"


def test_a_failure_reaches_a_waiting_rank_at_once(server: RendezvousServer) -> None:
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    answers: list[tuple[bool, float]] = []

    def wait() -> None:
        answers.append((client.stop_cause() is not None, time.monotonic()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.record(1, {"status": "ok", "kind": ""})
    recorded = time.monotonic()
    client.record(2, OWN_FAULT)
    waiting.join(timeout=5)
    assert answers[0][0]
    assert answers[0][1] - recorded < 1.0


def test_closing_frees_the_port_and_releases_who_waits(server: RendezvousServer) -> None:
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    answers: list[object] = []

    def wait() -> None:
        try:
            answers.append(client.stop_cause() is not None)
        except OSError as error:
            answers.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.record(0, {"status": "ok", "kind": ""})  # the server is serving
    server.close()
    waiting.join(timeout=5)
    assert answers
    assert answers[0] is not True
    with pytest.raises(ConnectionRefusedError):
        client.stop_cause()


def test_a_victim_only_stops_the_gang_after_the_grace() -> None:
    outcomes = Outcomes(size=2, grace_s=0.3)
    started = time.monotonic()
    outcomes.record(0, PEER_LOST)
    assert not outcomes.must_stop(wait_s=0)
    assert outcomes.must_stop(wait_s=10)
    assert 0.25 <= time.monotonic() - started < 5


def test_the_culprit_stops_the_gang_within_the_grace() -> None:
    outcomes = Outcomes(size=3, grace_s=60)
    outcomes.record(0, PEER_LOST)
    outcomes.record(1, OWN_FAULT)
    assert outcomes.must_stop(wait_s=0)


def test_all_reported() -> None:
    outcomes = Outcomes(size=2)
    outcomes.record(0, {"status": "ok", "kind": ""})
    outcomes.record(0, OWN_FAULT)  # only the first report of a rank counts
    assert not outcomes.wait_all(wait_s=0.01)
    assert not outcomes.must_stop(wait_s=0)
    outcomes.record(1, {"status": "ok", "kind": ""})
    assert outcomes.wait_all(wait_s=0)
