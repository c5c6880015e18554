"""Who may connect. Those that have not shown the secret yet are few, and here for a short time."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_MOST = 512
_PATIENCE_S = 10.0
_SWEEP_EVERY_S = 1.0
_PAUSE_S = 0.1


class Door:
    """Accepts the connections of a listening socket, each served by a thread of its own, until it is closed."""

    def __init__(self, listener: socket.socket, serve: Callable[[socket.socket], None], name: str) -> None:
        """Take over `listener`.

        Args:
            serve: called in a thread; it closes the connection, and tells `strangers` to forget it as soon as it is
                known.
            name: of the threads.
        """
        self.strangers = Strangers()
        self._listener, self._serve, self._name = listener, serve, name
        self._listener.settimeout(_SWEEP_EVERY_S)
        self._closed = False
        self._threads: set[threading.Thread] = set()
        self._acceptor = threading.Thread(target=self._accept, name=name, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Free the port and send the strangers away."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
        self._acceptor.join(timeout=5)
        self._listener.close()
        self.strangers.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads of all connections."""
        deadline = time.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                self.strangers.sweep()
                continue
            except OSError:  # closed; or no file descriptors are left, which come back
                if not self._closed:
                    time.sleep(_PAUSE_S)
                continue
            self.strangers.sweep()
            self.strangers.admit(connection)
            thread = threading.Thread(target=self._welcome, args=(connection,), name=self._name, daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:  # as many threads as there may be: those of strangers end soon
                self._threads.discard(thread)
                self.strangers.forget(connection)
                connection.close()
                time.sleep(_PAUSE_S)

    def _welcome(self, connection: socket.socket) -> None:
        try:
            self._serve(connection)
        except OSError:
            pass  # cut off in the middle
        except Exception as error:  # nonsense, whatever it is; what it says is nobody's to repeat
            logger.debug("%s: a connection is closed (%s)", self._name, type(error).__name__)
        finally:
            self.strangers.forget(connection)
            connection.close()
            self._threads.discard(threading.current_thread())


class Strangers:
    """Thread-safe. The owner calls `admit` for each new connection, `forget` once it is known or closed, and `sweep`
    at least once a second. A connection that is one too many or too slow is shut down, which ends the read that its
    thread waits in. The oldest goes first: whoever has the secret shows it within milliseconds, and may try again.
    """

    def __init__(self, most: int = _MOST, patience_s: float = _PATIENCE_S) -> None:
        self._most, self._patience_s = most, patience_s
        self._since: dict[socket.socket, float] = {}  # in the order in which they came
        self._lock = threading.Lock()

    def admit(self, connection: socket.socket) -> None:
        with self._lock:
            self._since[connection] = time.monotonic()
            surplus = list(self._since)[: -self._most]
        self._shut(surplus)

    def forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._since.pop(connection, None)

    def sweep(self) -> None:
        limit = time.monotonic() - self._patience_s
        with self._lock:
            late = [connection for connection, since in self._since.items() if since < limit]
        self._shut(late)

    def close(self) -> None:
        with self._lock:
            everybody = list(self._since)
        self._shut(everybody)

    def _shut(self, connections: list[socket.socket]) -> None:
        for connection in connections:
            self.forget(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
