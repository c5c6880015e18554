"""The gang's server: a store that only the gang can use, and the decision who is to blame."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator

import pytest

from hvdspark.launch.rendezvous import Outcomes, RendezvousClient, RendezvousServer

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


def test_horovods_client_is_pointed_at_the_secret() -> None:
    environment = RendezvousClient("10.0.0.1", 4567, SECRET).horovod_environment()
    url = "http://{HOROVOD_GLOO_RENDEZVOUS_ADDR}:{HOROVOD_GLOO_RENDEZVOUS_PORT}/global/0".format(**environment)
    assert url == f"http://10.0.0.1:4567/{SECRET}:0/global/0"


def test_a_failure_reaches_a_waiting_rank_at_once(server: RendezvousServer) -> None:
    client = RendezvousClient("127.0.0.1", server.port, SECRET)
    answers: list[tuple[bool, float]] = []

    def wait() -> None:
        answers.append((client.must_stop(), time.monotonic()))

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
            answers.append(client.must_stop())
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
        client.must_stop()


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
