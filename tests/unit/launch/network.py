"""A network that loses what passes through it."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Listens on loopback and carries bytes to another port, until it is told to cut or to refuse."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_for(self, connections: int) -> None:
        """Wait until so many connections were made."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.connections >= connections, timeout=10)

    def cut(self) -> None:
        """End every connection without a word."""
        with self._changed:
            victims, self._open = self._open, []
        for victim in victims:
            with contextlib.suppress(OSError):
                victim.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Cut, and refuse from now on."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._changed:
                self._open += [near, far]
                self.connections += 1
                self._changed.notify_all()
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
