"""The gang's server: a store that only the gang can use, and the decision who is to blame."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from hvdspark.launch import rendezvous
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer

SECRET = "0123456789abcdef"
OK = Outcome("ok")
OWN_FAULT = Outcome("failed", "exception")
PEER_LOST = Outcome("failed", "peer_lost")


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
            stranger.sendall(bytes(100 << 20))


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


@pytest.mark.parametrize(
    ("method", "key", "body"),
    [
        ("PUT", "control/x", b"{}"),
        ("PUT", "control/0", b"[]"),
        ("PUT", "control/0", b"{"),
        ("PUT", "control/0", b"[" * 100_000),
        ("PUT", "control/0", b'{"status": "ok", "rank": 1}'),
        ("PUT", "control/ready/", b""),
        ("PUT", "control/99", b'{"status": "failed", "kind": "exception"}'),
        ("PUT", "control/ready/99", b""),
        ("GET", "control/scope/x/global", None),
        ("GET", "control/stop/-", None),
        ("GET", "%ff/%fe", None),
    ],
)
def test_nonsense_with_the_secret_is_refused(
    server: RendezvousServer, method: str, key: str, body: bytes | None
) -> None:
    status, answer = request(server, method, f"/{SECRET}:0/{key}", body)
    assert status in (400, 404)
    assert answer == b""
    assert not server.outcomes.must_stop(0), "a rank that there is not has no outcome"
    assert not server.outcomes.all_ready(0)


def test_a_flood_of_strangers_costs_little_and_keeps_nobody_out(server: RendezvousServer) -> None:
    """Slow ones, silent ones, and ones that left half-way: all that may be open at once and more."""
    before = threading.active_count()
    strangers = []
    for number in range(700):
        stranger = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        if number % 3 == 0:
            stranger.sendall(b"GET /")
        elif number % 3 == 1:
            stranger.shutdown(socket.SHUT_WR)  # half-open
        strangers.append(stranger)
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    client.put("global", "0", b"address")
    assert client.scope("global", 1) == {"0": b"address"}
    assert threading.active_count() - before <= 530
    for stranger in strangers:
        stranger.close()


def test_who_is_served_last_is_served_when_there_are_no_more_threads(
    server: RendezvousServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, refused = threading.Thread.start, []

    def few(thread: threading.Thread) -> None:
        if thread.name == "hvdspark-rendezvous" and len(refused) < 3:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as turned_away:
            assert turned_away.recv(1) == b""
    assert request(server, "GET", f"/{SECRET}:0/global/0") == (404, b"")


def test_a_slow_stranger_is_sent_away(server: RendezvousServer) -> None:
    """One byte now and then is no way to stay: it is the whole of the first line that has its time."""
    server.door.strangers._patience_s = 0.5
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stranger:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 8:
                stranger.sendall(b"G")
                stranger.settimeout(0.2)
                try:
                    if not stranger.recv(1):
                        break
                except TimeoutError:
                    continue
        assert time.monotonic() - began < 5


def test_a_lost_request_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_RETRY_S", 0.5)
    attempts = []

    def lost_twice() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionResetError
        return "arrived"

    assert rendezvous.retried(lost_twice) == "arrived"
    with pytest.raises(ConnectionResetError):
        rendezvous.retried(lambda: (_ for _ in ()).throw(ConnectionResetError()))


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


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("bind", ["::1", ""])
def test_tasks_meet_over_ipv6(bind: str) -> None:
    server = RendezvousServer(bind, size=2, secret=SECRET)
    client = RendezvousClient("::1", server.port, SECRET)
    client.put("global", "0", b"address")
    assert client.scope("global", at_least=1) == {"0": b"address"}
    assert client.record(0, OK) == 0
    server.close()


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
    client.record(1, OK)
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
    client.record(0, OK)  # the server is serving
    server.close()
    waiting.join(timeout=5)
    assert answers
    assert answers[0] is not True
    with pytest.raises(ConnectionRefusedError):
        client.stop_cause()


def test_closing_waits_for_the_last_answer(server: RendezvousServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose report is noted and not answered would ask again for half a minute."""
    noted, answer = threading.Event(), threading.Event()
    record = server.outcomes.record

    def slow(rank: int, outcome: Outcome) -> int:
        order = record(rank, outcome)
        noted.set()
        answer.wait(10)
        return order

    monkeypatch.setattr(server.outcomes, "record", slow)
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    with ThreadPoolExecutor(2) as pool:
        reported = pool.submit(client.record, 0, OK)
        assert noted.wait(10)
        closed = pool.submit(server.close)
        assert wait([closed], timeout=0.5).not_done
        answer.set()
        assert reported.result(timeout=10) == 0
        closed.result(timeout=10)
