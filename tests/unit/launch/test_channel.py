"""Events reach the driver; strangers, dead peers and a dead driver are noticed."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hvdspark.launch.channel import ChannelListener, ChannelSender
from hvdspark.launch.seals import Seals, nonce
from tests.unit.launch.network import Relay

SECRET = "s3cret"


class Driver:
    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.lost: queue.Queue[dict[str, Any]] = queue.Queue()
        self.listener = ChannelListener("127.0.0.1", SECRET, self.events.put, self.lost.put)
        self.address = ("127.0.0.1", self.listener.port)


@contextlib.contextmanager
def met(driver: Driver, secret: str = SECRET) -> Iterator[tuple[socket.socket, Seals]]:
    """A connection to the driver on which both nonces are known, and nothing was said."""
    with socket.create_connection(driver.address, timeout=5) as connection:
        connection.sendall(own := nonce())
        with connection.makefile("rb") as lines:
            yield connection, Seals.of(secret, own, lines.readline())


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.listener.close()


def test_events_arrive_in_order_and_goodbye_is_not_a_loss(driver: Driver) -> None:
    sender = ChannelSender(driver.address, SECRET, on_closed=lambda: None)
    for number in range(100):
        sender.send({"event": "progress", "number": number})
    sender.close()
    received = [driver.events.get(timeout=5) for _ in range(101)]
    assert [event.get("number") for event in received] == [*range(100), None]
    assert received[-1] == {"event": "bye"}
    driver.listener.close()
    assert driver.lost.empty()


def test_a_dead_task_is_reported_with_its_first_event(driver: Driver) -> None:
    with met(driver) as (connection, seals):
        connection.sendall(seals.task.line(json.dumps({"event": "started", "rank": 3, "host": "h"})))
        driver.events.get(timeout=5)
    assert driver.lost.get(timeout=5) == {"event": "started", "rank": 3, "host": "h"}


@pytest.mark.parametrize(
    "line",
    [
        b'{"event": "progress"}\n',
        b"deadbeef {}\n",
        b"of another secret",
        b"\n",
        b"\xff\xfe \x80\n",
        "\N{LATIN SMALL LETTER E WITH ACUTE} {}\n".encode(),
        b"x" * 5000,  # more than a first line may have, and no end of it
    ],
)
@pytest.mark.parametrize("after_nonces", [True, False])
def test_strangers_are_hung_up_on(driver: Driver, line: bytes, after_nonces: bool) -> None:
    failures: queue.Queue[Any] = queue.Queue()
    threading.excepthook, before = failures.put, threading.excepthook
    try:
        with contextlib.ExitStack() as stack:
            if after_nonces:
                connection, seals = stack.enter_context(met(driver, "other"))
                line = seals.task.line("{}") if line == b"of another secret" else line
            else:
                connection = stack.enter_context(socket.create_connection(driver.address, timeout=5))
                line = line + b"\n" + line
            connection.sendall(line + (b"" if line.endswith(b"\n") or len(line) > 4096 else b"\n"))
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(100):  # its nonce
                    pass
        driver.listener.close()
    finally:
        threading.excepthook = before
    assert driver.events.empty()
    assert failures.empty(), failures.get().exc_value


def test_what_was_said_counts_once_and_in_its_place(driver: Driver) -> None:
    """Whoever listens on the network can record signed lines, and must not be able to use them."""
    hello, more = (json.dumps({"event": name, "rank": 0, "host": "h"}) for name in ("started", "steps"))
    with met(driver) as (connection, seals):
        recorded = [seals.task.line(hello), seals.task.line(more)]
        connection.sendall(recorded[0])
        assert driver.events.get(timeout=5) == json.loads(hello)
        connection.sendall(recorded[0])  # again
        assert connection.recv(1) == b"", "hung up on"
    assert driver.lost.get(timeout=5) == json.loads(hello)
    for lines in (recorded[:1], recorded[1:], recorded):
        with met(driver) as (connection, _):  # on another connection
            connection.sendall(b"".join(lines))
            assert connection.recv(1) == b""
    with met(driver) as (connection, seals):
        first, second = seals.task.line(hello), seals.task.line(more)
        connection.sendall(second + first)  # in another order
        assert connection.recv(1) == b""
    with met(driver) as (connection, seals):
        connection.sendall(seals.driver.line(hello))  # what the driver could have said
        assert connection.recv(1) == b""
    assert driver.events.empty()
    assert driver.lost.empty()


@pytest.mark.parametrize("said", ["[]", "5", "null", "[" * 100_000, '{"event": NaN, "rank": {}}', "{} {}"])
def test_nonsense_of_one_with_the_secret_is_hung_up_on_or_handed_on(driver: Driver, said: str) -> None:
    failures: queue.Queue[Any] = queue.Queue()
    threading.excepthook, before = failures.put, threading.excepthook
    try:
        with met(driver) as (connection, seals):
            connection.sendall(seals.task.line(json.dumps({"event": "started", "rank": 0})))
            driver.events.get(timeout=5)
            connection.sendall(seals.task.line(said))
        driver.lost.get(timeout=5)
        driver.listener.close()
    finally:
        threading.excepthook = before
    assert failures.empty(), failures.get().exc_value


def test_a_task_does_not_listen_to_strangers() -> None:
    """One who takes the driver's place cannot end ranks, not even with lines that the driver once said."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = ChannelSender(server.getsockname(), SECRET, on_closed=gone.set)
        sender.send({"event": "started"})
        recorded, own = [], nonce()
        for turn in range(2):
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(own)
                seals = Seals.of(SECRET, lines.readline(), own)
                recorded.append(seals.driver.line("stop"))
                lines.readline()
                connection.sendall((b"stop\n", recorded[0])[turn])
                lines.read()  # until it hangs up
        assert not gone.is_set()
        sender.close()


def test_a_cut_connection_is_made_again_and_is_no_end(driver: Driver) -> None:
    relay, gone = Relay(driver.listener.port), threading.Event()
    sender = ChannelSender(("127.0.0.1", relay.port), SECRET, on_closed=gone.set)
    hello = {"event": "started", "rank": 1, "host": "h"}
    sender.send(hello)
    for cut in range(1, 4):
        assert driver.events.get(timeout=5) == hello, "it says again who it is"
        relay.cut()
        assert driver.lost.get(timeout=5) == hello
        relay.wait_for(cut + 1)
    assert driver.events.get(timeout=5) == hello
    sender.send({"event": "progress"})
    assert driver.events.get(timeout=5) == {"event": "progress"}
    assert not gone.is_set()
    sender.close()
    relay.close()


def test_a_connection_that_was_good_for_long_is_made_again_at_once(driver: Driver) -> None:
    relay, heartbeat_s = Relay(driver.listener.port), 0.05
    sender = ChannelSender(("127.0.0.1", relay.port), SECRET, on_closed=lambda: None, heartbeat_s=heartbeat_s)
    sender.send({"event": "started"})
    driver.events.get(timeout=5)
    threading.Event().wait(2 * heartbeat_s)  # that long it lasts, which is what is tested
    relay.cut()
    assert driver.events.get(timeout=5) == {"event": "started"}  # the longest pause is 10 s
    sender.close()
    relay.close()


def test_a_driver_that_stays_away_is_believed_gone_after_the_grace(driver: Driver) -> None:
    relay, gone = Relay(driver.listener.port), threading.Event()
    sender = ChannelSender(("127.0.0.1", relay.port), SECRET, on_closed=gone.set, grace_s=1.0)
    sender.send({"event": "started"})
    driver.events.get(timeout=5)
    relay.close()
    assert not gone.wait(timeout=0.5)
    assert gone.wait(timeout=10)
    sender.close()


def test_a_connection_is_never_idle(driver: Driver) -> None:
    # The listener drops heartbeats; what it hears without them is a signed line every now and then.
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = ChannelSender(server.getsockname(), SECRET, on_closed=lambda: None, heartbeat_s=0.1)
        sender.send({"event": "started"})
        connection, _ = server.accept()
        with connection, connection.makefile("r") as lines:
            connection.sendall(nonce())
            lines.readline()
            heard = [json.loads(lines.readline().partition(" ")[2])["event"] for _ in range(3)]
        sender.close()
    assert heard == ["started", "alive", "alive"]


def test_a_port_can_be_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listener = ChannelListener("127.0.0.1", SECRET, lambda event: None, lambda event: None, first_port=port)
        assert port < listener.port < port + 16
        listener.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("bind", ["::1", ""])
def test_ipv6(bind: str) -> None:
    events: queue.Queue[Any] = queue.Queue()
    listener = ChannelListener(bind, SECRET, events.put, lambda event: None)
    sender = ChannelSender(("::1", listener.port), SECRET, on_closed=lambda: None)
    sender.send({"event": "started"})
    assert events.get(timeout=5) == {"event": "started"}
    sender.close()
    listener.close()


def test_an_exception_in_the_listener_does_not_end_the_channel() -> None:
    seen: queue.Queue[int] = queue.Queue()

    def fails(event: dict[str, Any]) -> None:
        seen.put(event.get("number", -1))
        raise RuntimeError("a broken progress bar")

    listener = ChannelListener("127.0.0.1", SECRET, fails, lambda event: None)
    sender = ChannelSender(("127.0.0.1", listener.port), SECRET, on_closed=lambda: None)
    sender.send({"number": 1})
    sender.send({"number": 2})
    assert [seen.get(timeout=5), seen.get(timeout=5)] == [1, 2]
    sender.close()
    listener.close()


def test_events_of_several_tasks_are_handed_on_one_at_a_time() -> None:
    inside, overlapped, ended = threading.Semaphore(1), [], threading.Semaphore(0)

    def on_event(event: dict[str, Any]) -> None:
        if not inside.acquire(blocking=False):
            overlapped.append(event)
            return
        threading.Event().wait(0.05)  # long enough for the others to come
        inside.release()
        ended.release()

    listener = ChannelListener("127.0.0.1", SECRET, on_event, lambda event: None)
    senders = [ChannelSender(("127.0.0.1", listener.port), SECRET, on_closed=lambda: None) for _ in range(4)]
    for sender in senders:
        sender.send({"event": "started"})
    assert all(ended.acquire(timeout=5) for _ in senders)
    assert not overlapped
    for sender in senders:
        sender.close()
    listener.close()


def test_the_end_of_the_driver_is_noticed(driver: Driver) -> None:
    gone = threading.Event()
    sender = ChannelSender(driver.address, SECRET, on_closed=gone.set)
    sender.send({"event": "started"})
    driver.events.get(timeout=5)
    driver.listener.close()
    assert gone.wait(timeout=5)
    sender.close()


def test_the_word_to_make_room_reaches_tasks_of_before_and_after_and_again_after_a_cut(driver: Driver) -> None:
    relay, heard, gone = Relay(driver.listener.port), queue.Queue[str](), threading.Event()
    sender = ChannelSender(("127.0.0.1", relay.port), SECRET, on_closed=gone.set, on_preempt=heard.put)
    sender.send({"event": "started"})
    driver.events.get(timeout=5)
    driver.listener.preempt("a user asked for it")
    assert heard.get(timeout=5) == "a user asked for it"
    relay.cut()
    assert heard.get(timeout=5) == "a user asked for it"
    late = ChannelSender(driver.address, SECRET, on_closed=gone.set, on_preempt=heard.put)
    late.send({"event": "started"})
    assert heard.get(timeout=5) == "a user asked for it"
    assert not gone.is_set(), "nobody is told to stop"
    sender.send({"event": "progress"})
    while driver.events.get(timeout=5) != {"event": "progress"}:
        pass
    driver.listener.close()
    assert gone.wait(timeout=5), "what comes after the word is heard, too"
    for one in (sender, late):
        one.close()
    relay.close()


def test_a_word_that_is_not_signed_is_not_heard() -> None:
    heard, gone = queue.Queue[str](), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = ChannelSender(server.getsockname(), SECRET, on_closed=gone.set, on_preempt=heard.put)
        sender.send({"event": "started"})
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as lines:
            connection.sendall(nonce())
            connection.sendall(b"preempt x\n")
            lines.read()  # until it hangs up
        sender.close()
    assert heard.empty()
    assert not gone.is_set()


def test_without_a_driver_events_go_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for address in (None, ("127.0.0.1", port)):
        sender = ChannelSender(address, SECRET, on_closed=lambda: None)
        for _ in range(1000):
            sender.send({"event": "progress"})
        sender.close()
