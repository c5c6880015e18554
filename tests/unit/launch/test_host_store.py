"""What Horovod asks of its store, for one rank."""

from __future__ import annotations

import http.client
import os
import queue
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hvdspark.launch.host_store import HostStore
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer
from hvdspark.specs import World

SECRET = "0123456789abcdef"


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
        store = HostStore(gang, worlds[rank])
        try:
            assert horovod_request(store, "PUT", rank, addresses[rank]) == (200, b"")
            asks = range(size) if rank % 64 == 1 else [(rank + 1) % size]
            for peer in asks:
                answers = [horovod_request(store, "GET", peer) for _ in range(2)]
                wrong.extend(rank for answer in answers if answer != (200, addresses[peer]))
            connected.wait(timeout=60)  # Gloo's barrier
            assert horovod_request(store, "DELETE", rank) == (200, b"")
        finally:
            store.close()

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(meet, range(size)))
    server.close()
    assert not wrong
    assert len(asked) == 3 * size, "a PUT, one question for all addresses, a DELETE"
    assert time.monotonic() - began < 60


def horovod_request(
    store: HostStore, method: str, key: int | str, body: bytes | None = None, scope: str = "global"
) -> tuple[int, bytes]:
    address, _, secret = store.horovod_environment()["HOROVOD_GLOO_RENDEZVOUS_ADDR"].partition("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, f"/{secret}:0/{scope}/{key}", body)
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
    store = HostStore(gang, World(1, 4, 1, 2, 0, 3, "h"))
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        answers.put(horovod_request(store, "GET", peers - 1, scope=scope)[1])

    waiting = threading.Thread(target=ask)
    for key in range(peers - 1):
        gang.put(scope, str(key), zlib.compress(b"early"))
    waiting.start()
    gang.put(scope, str(peers - 1), zlib.compress(b"late"))
    waiting.join(timeout=20)
    server.close()
    store.close()
    assert answers.get(timeout=5) in (b"late", b"")  # b"": not found; Horovod asks again


def test_a_ranks_environment_has_no_secret_of_the_gang() -> None:
    """User code may print its environment. What is found there answers questions for addresses, and no others."""
    server = RendezvousServer("127.0.0.1", 2, SECRET)
    store = HostStore(RendezvousClient("127.0.0.1", server.port, SECRET), World(0, 2, 0, 2, 0, 1, "h"))
    try:
        assert SECRET not in str(store.horovod_environment())
        for method, key, body in (
            ("PUT", "ready/1", b""),
            ("PUT", "1", b'{"status": "failed", "kind": "exception"}'),
            ("GET", "stop/1", None),
            ("DELETE", "1", None),
        ):
            assert horovod_request(store, method, key, body, scope="control")[0] == 400
        assert not server.outcomes.all_ready(0)
        assert not server.outcomes.must_stop(0)
    finally:
        store.close()
        server.close()
