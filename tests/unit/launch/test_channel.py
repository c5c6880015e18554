"""Events reach the driver; strangers, dead peers and a dead driver are noticed."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hvdspark.launch.channel import ChannelListener, ChannelSender, sign

SECRET = "s3cret"


class Driver:
    def __init__(self) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.lost: queue.Queue[dict[str, Any]] = queue.Queue()
        self.listener = ChannelListener("127.0.0.1", SECRET, self.events.put, self.lost.put)
        self.address = ("127.0.0.1", self.listener.port)


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
    with socket.create_connection(driver.address) as connection:
        text = json.dumps({"event": "started", "rank": 3, "host": "h"})
        connection.sendall(f"{sign(SECRET, text)} {text}\n".encode())
        driver.events.get(timeout=5)
    assert driver.lost.get(timeout=5) == {"event": "started", "rank": 3, "host": "h"}


@pytest.mark.parametrize("line", ['{"event": "progress"}\n', "deadbeef {}\n", f"{sign('other', '{}')} {{}}\n", "\n"])
def test_strangers_are_hung_up_on(driver: Driver, line: str) -> None:
    with socket.create_connection(driver.address, timeout=5) as connection:
        connection.sendall(line.encode())
        assert connection.recv(1) == b""
    assert driver.events.empty()


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


def test_the_end_of_the_driver_is_noticed(driver: Driver) -> None:
    gone = threading.Event()
    sender = ChannelSender(driver.address, SECRET, on_closed=gone.set)
    sender.send({"event": "started"})
    driver.events.get(timeout=5)
    driver.listener.close()
    assert gone.wait(timeout=5)
    sender.close()


def test_without_a_driver_events_go_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    for address in (None, ("127.0.0.1", port)):
        sender = ChannelSender(address, SECRET, on_closed=lambda: None)
        for _ in range(1000):
            sender.send({"event": "progress"})
        sender.close()
