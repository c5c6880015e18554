"""Events from the ranks to the driver while they run: progress, and who has started.

Lines of JSON over TCP, each signed with the run's secret. The channel is a convenience: results and errors travel
as rows of the Spark job, so a run without a channel (Spark Connect, where the driver cannot be reached) differs
only in that it shows no progress. A connection that ends tells the other side that it is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

_CONNECT_TIMEOUT_S = 10.0
_LONGEST_LINE = 1 << 20
_QUEUED_EVENTS = 256


def sign(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


class ChannelListener:
    """Driver side. Calls `on_event(event)` in a thread for each event; an exception there is dropped with its line.

    `on_lost(hello)` is called with a task's first event when its connection ends without a last event
    `{"event": "bye"}`: the executor died.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[dict[str, Any]], None],
    ) -> None:
        self._secret, self._on_event, self._on_lost = secret, on_event, on_lost
        self._socket = socket.create_server((host, 0), backlog=1024)
        self.port: int = self._socket.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [threading.Thread(target=self._accept, name="hvdspark-channel", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Close every connection; the tasks at the other end take that as the order to stop."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        self._socket.close()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), name="hvdspark-channel", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        hello: dict[str, Any] | None = None
        said_bye = False
        try:
            with connection, connection.makefile("r", encoding="utf-8", newline="\n") as lines:
                while line := lines.readline(_LONGEST_LINE):
                    signature, _, text = line.rstrip("\n").partition(" ")
                    if not hmac.compare_digest(signature, sign(self._secret, text)):
                        return  # a stranger: hang up
                    event = json.loads(text)
                    hello = hello or event
                    said_bye = event.get("event") == "bye"
                    with contextlib.suppress(Exception):  # a progress bar must never end a training run
                        self._on_event(event)
        except (OSError, ValueError):
            pass  # cut off in the middle of a line
        finally:
            with self._lock:
                self._connections.discard(connection)
                lost = hello is not None and not said_bye and not self._closed
            if lost and hello is not None:
                self._on_lost(hello)


class ChannelSender:
    """Task side. Without an address, or when the driver cannot be reached, events go nowhere.

    `on_closed` is called in a thread when the driver's end closes before `close()` was called.
    """

    def __init__(self, address: tuple[str, int] | None, secret: str, on_closed: Callable[[], None]) -> None:
        self._secret, self._on_closed = secret, on_closed
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUED_EVENTS)
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._socket: socket.socket | None = None
        if address is not None:
            with contextlib.suppress(OSError):
                self._socket = socket.create_connection(address, timeout=_CONNECT_TIMEOUT_S)
        if self._socket is not None:
            for target in (self._write, self._watch):
                thread = threading.Thread(target=target, name="hvdspark-channel", daemon=True)
                thread.start()
                self._threads.append(thread)

    def send(self, event: dict[str, Any]) -> None:
        """Queue an event; dropped when the queue is full."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(event)

    def close(self) -> None:
        """Say goodbye, send what is queued, hang up."""
        self._closing = True
        if self._socket is None:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put({"event": "bye"}, timeout=_CONNECT_TIMEOUT_S)
            self._queue.put(None, timeout=_CONNECT_TIMEOUT_S)
        self._threads[0].join(timeout=_CONNECT_TIMEOUT_S)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._threads[1].join(timeout=_CONNECT_TIMEOUT_S)

    def _write(self) -> None:
        assert self._socket is not None
        while (event := self._queue.get()) is not None:
            text = json.dumps(event)
            try:
                self._socket.sendall(f"{sign(self._secret, text)} {text}\n".encode())
            except OSError:
                return

    def _watch(self) -> None:
        assert self._socket is not None
        self._socket.settimeout(None)
        with contextlib.suppress(OSError):
            while self._socket.recv(1024):
                pass
        if not self._closing:
            self._on_closed()
