"""Events from the ranks to the driver while they run: progress, and who is where; and the driver's word to the ranks.

Lines of JSON over TCP, each signed with the run's secret (seals.py). The channel is a convenience: starts are learned
from Spark, results and errors travel as rows of the Spark job, so a run without a channel (a port that executors
cannot reach) differs only in that it shows no progress. A lost connection is made again. It says nothing about the
rank, and only a driver that stays away for minutes counts as gone; one that ends a run says so.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from hvdspark.launch.addresses import keep_alive, listen_from
from hvdspark.launch.door import Door
from hvdspark.launch.seals import LONGEST_NONCE, Seal, Seals, nonce

GRACE_S = 120.0
_HEARTBEAT_S = 20.0
_SILENCE_S = 90.0
_CONNECT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_S = 10.0
_CLOSE_UNREACHED_S = 0.5
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LONGEST_FIRST_LINE = 4096
_LONGEST_LINE = 1 << 20
_QUEUED_EVENTS = 256
_HEARTBEAT = {"event": "alive"}
_BYE = {"event": "bye"}
_STOP = "stop"
_PREEMPT = "preempt"


class ChannelListener:
    """Driver side. Calls `on_event(event)` in a thread for each event, one call at a time for all tasks together; an
    exception there is dropped with its line.

    `on_lost(hello)` is called with a task's first event when its connection ends without a last event
    `{"event": "bye"}`: the connection was cut, and the task will come back with the same event, or it died.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        on_event: Callable[[dict[str, Any]], None],
        on_lost: Callable[[dict[str, Any]], None],
        first_port: int = 0,
    ) -> None:
        """Listen at `host` on any free port, or on one of the 16 from `first_port` on. Raises OSError."""
        self._secret, self._on_event, self._on_lost = secret, on_event, on_lost
        listener = listen_from(host, first_port)
        self.port: int = listener.getsockname()[1]
        self._tasks: dict[socket.socket, Seal] = {}  # what the driver says to each
        self._lock, self._calling, self._speaking = threading.Lock(), threading.Lock(), threading.Lock()
        self._closed = False
        self._preempted: str | None = None
        self._door = Door(listener, self._serve, "hvdspark-channel")

    def preempt(self, reason: str) -> None:
        """Tell all tasks, those that connect later too, that their ranks are asked to make room."""
        with self._lock:
            self._preempted = reason
            tasks = dict(self._tasks)
        for connection, seal in tasks.items():
            self._say(connection, seal, f"{_PREEMPT} {reason}")

    def close(self) -> None:
        """Tell the tasks to stop, and close every connection."""
        with self._lock:
            self._closed = True
            tasks = dict(self._tasks)
        self._door.close()
        for connection, seal in tasks.items():
            with contextlib.suppress(OSError):
                connection.settimeout(1.0)
            self._say(connection, seal, _STOP)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._door.join(timeout_s=5)

    def _serve(self, connection: socket.socket) -> None:
        hello: dict[str, Any] | None = None
        said_bye = False
        try:
            with connection.makefile("rb") as lines:
                connection.sendall(own := nonce())
                seals = Seals.of(self._secret, lines.readline(LONGEST_NONCE), own)
                while line := lines.readline(_LONGEST_LINE if hello else _LONGEST_FIRST_LINE):
                    text = seals.task.text(line)
                    if text is None:
                        return  # a stranger: hang up
                    event = json.loads(text)
                    if not isinstance(event, dict):
                        return
                    if hello is None:
                        hello = event
                        self._admit(connection, seals.driver)
                    said_bye = event.get("event") == "bye"
                    if event != _HEARTBEAT:
                        # A progress bar must never end a training run.
                        with self._calling, contextlib.suppress(Exception):
                            self._on_event(event)
        finally:
            with self._lock:
                self._tasks.pop(connection, None)
                lost = hello is not None and not said_bye and not self._closed
            if lost and hello is not None:
                self._on_lost(hello)

    def _admit(self, connection: socket.socket, seal: Seal) -> None:
        """The other side has the secret. Raises OSError when the listener is closed."""
        self._door.strangers.forget(connection)
        keep_alive(connection)
        connection.settimeout(_SILENCE_S)
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError
            self._tasks[connection] = seal
            preempted = self._preempted
        if preempted is not None:
            self._say(connection, seal, f"{_PREEMPT} {preempted}")

    def _say(self, connection: socket.socket, seal: Seal, text: str) -> None:
        """One that does not hear it comes back, and is told then."""
        with self._speaking, contextlib.suppress(OSError):
            connection.sendall(seal.line(text))


class ChannelSender:
    """Task side. Without an address, or while the driver cannot be reached, events go nowhere.

    `on_closed` is called in a thread when the driver ends the run, or when it was reached once and then not for
    `grace_s` seconds, before `close()` was called. `on_preempt(reason)` is called in a thread when the driver asks the
    rank to make room; perhaps several times.
    """

    def __init__(
        self,
        address: tuple[str, int] | None,
        secret: str,
        on_closed: Callable[[], None],
        on_preempt: Callable[[str], None] = lambda reason: None,
        grace_s: float = GRACE_S,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        self._address, self._secret = address, secret
        self._on_closed, self._on_preempt = on_closed, on_preempt
        self._grace_s, self._heartbeat_s = grace_s, heartbeat_s
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUED_EVENTS)
        self._hello: dict[str, Any] | None = None
        self._started, self._closing, self._reached = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        if address is not None:
            self._thread = threading.Thread(target=self._run, name="hvdspark-channel", daemon=True)
            self._thread.start()

    def send(self, event: dict[str, Any]) -> None:
        """Queue an event; dropped when the queue is full. The first one is what the driver hears after a cut, too."""
        if self._hello is None:
            self._hello = event
            self._started.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(event)

    def close(self) -> None:
        """Send what is queued and say goodbye, if the driver is there; hang up."""
        self._closing.set()
        self._started.set()
        self._wake(None)
        if self._thread is not None:
            self._thread.join(timeout=_CLOSE_TIMEOUT_S if self._reached.is_set() else _CLOSE_UNREACHED_S)

    def _wake(self, message: dict[str, Any] | None) -> None:
        with contextlib.suppress(queue.Full):  # then nobody is waiting for a message
            self._queue.put_nowait(message)

    def _run(self) -> None:
        assert self._address is not None
        reached_s, failures = 0.0, 0
        self._started.wait()  # one that connects and says nothing is taken for a stranger
        while self._hello is not None:
            tried_s = time.monotonic()
            try:
                connection = socket.create_connection(self._address, timeout=_CONNECT_TIMEOUT_S)
            except OSError:
                connection = None
            if connection is not None:
                self._reached.set()
                with connection:
                    if self._talk(connection, again=reached_s > 0):
                        return
                reached_s = time.monotonic()
            elif reached_s > 0 and time.monotonic() - reached_s > self._grace_s:
                self._on_closed()
                return
            failures = 0 if time.monotonic() - tried_s > self._heartbeat_s else min(failures + 1, len(_PAUSES_S) - 1)
            if self._closing.wait(_PAUSES_S[failures]):
                return

    def _talk(self, connection: socket.socket, again: bool) -> bool:
        """Send events until the connection is lost; True when there is nothing more to say to anybody."""
        keep_alive(connection)
        lost, told_to_stop = threading.Event(), threading.Event()
        finished = False
        with connection.makefile("rb") as lines:
            seals = self._meet(connection, lines)
            if seals is None:
                return False
            reader = threading.Thread(
                target=self._listen,
                args=(lines, seals.driver, lost, told_to_stop),
                name="hvdspark-channel",
                daemon=True,
            )
            reader.start()
            with contextlib.suppress(OSError):
                if again:
                    connection.sendall(seals.task.line(json.dumps(self._hello)))
                while not (finished or lost.is_set()):
                    event = self._next()
                    connection.sendall(seals.task.line(json.dumps(_BYE if event is None else event)))
                    finished = event is None
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            reader.join(timeout=_CLOSE_TIMEOUT_S)
        return finished or told_to_stop.is_set()

    def _meet(self, connection: socket.socket, lines: BinaryIO) -> Seals | None:
        """Exchange nonces; None where nobody answers."""
        with contextlib.suppress(OSError):
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.sendall(own := nonce())
            if answer := lines.readline(LONGEST_NONCE):
                connection.settimeout(None)
                return Seals.of(self._secret, own, answer)
        return None

    def _next(self) -> dict[str, Any] | None:
        try:
            return self._queue.get(timeout=self._heartbeat_s)
        except queue.Empty:
            return _HEARTBEAT

    def _listen(self, lines: BinaryIO, seal: Seal, lost: threading.Event, told_to_stop: threading.Event) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (text := seal.text(lines.readline(_LONGEST_FIRST_LINE))) is not None:
                word, _, reason = text.partition(" ")
                if word == _PREEMPT:
                    self._on_preempt(reason)
                    continue
                if word == _STOP:
                    told_to_stop.set()
                    if not self._closing.is_set():
                        self._on_closed()
                break
        lost.set()
        self._wake(_HEARTBEAT)
