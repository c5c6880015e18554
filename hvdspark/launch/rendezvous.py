"""The one server of a gang: Horovod's Gloo rendezvous, and who failed first.

The task of partition 0 binds it before the tasks meet and keeps it until every rank has reported, so no port is ever
released and bound again. It speaks the GET / PUT / DELETE protocol of Horovod's `HTTPStore`
(horovod/common/gloo/http_store.cc). That client cannot send a header, but it builds its URL as
`http://{ADDR}:{PORT}/{scope}/{key}`, so giving it `ADDR = host:port/secret` and `PORT = 0` puts the per-run secret
in front of every path; requests without it are refused, before anything but their first line is read.

Ranks do not talk to it themselves: each asks the `HostStore` of its own task (host_store.py), which asks here once
for all addresses of a scope.
"""

from __future__ import annotations

import hmac
import http.client
import json
import math
import socket
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from typing import Any, TypeVar

from hvdspark.launch.addresses import listen
from hvdspark.launch.door import Door
from hvdspark.launch.liveness import SignOfLife
from hvdspark.launch.outcomes import Outcome, Outcomes, StopCause

T = TypeVar("T")

_LONG_POLL_S = 10.0
# A cut connection is noticed when the answer to a long poll is overdue.
_REQUEST_TIMEOUT_S = _LONG_POLL_S + 5.0
_RETRY_S = 30.0
_RETRY_PAUSE_S = 0.2
_LAST_ANSWERS_S = 5.0
_LONGEST_REQUEST_LINE = 2048
# An address book entry is 136 bytes for each pair of ranks; no report is longer.
_LONGEST_BODY = 8 << 20
CONTROL = "control"  # scope of what tasks ask for themselves


class StoreServer:
    """Listens from construction on, in front of a `Store`; `close()` frees port and threads."""

    def __init__(self, host: str, secret: str, store: Store) -> None:
        """Bind `host` (an address of this machine; "" for all) on a free port."""
        self.first_part, self.store = f"{secret}:0".encode(), store
        listener = listen(host)
        self.port: int = listener.getsockname()[1]
        self.door = Door(listener, self._serve, "hvdspark-rendezvous")

    def close(self) -> None:
        self.door.close()

    def _serve(self, connection: socket.socket) -> None:
        _Handler(connection, None, self)  # type: ignore[arg-type]  # reads and answers one request


class Store:
    """What a `StoreServer` does for requests with the secret. All methods may be called from several threads."""

    def get(self, scope: str, key: str) -> bytes | None:
        """The answer, or None for "not found"."""
        raise NotImplementedError

    def put(self, scope: str, key: str, value: bytes) -> bytes:
        raise NotImplementedError

    def delete(self, scope: str, key: str) -> None:
        raise NotImplementedError


class RendezvousServer(StoreServer):
    """The gang's."""

    def __init__(
        self,
        host: str,
        size: int,
        secret: str,
        start_timeout_s: float | None = None,
        stall_timeout_s: float = math.inf,
    ) -> None:
        self.outcomes = Outcomes(size, start_timeout_s=start_timeout_s, stall_timeout_s=stall_timeout_s)
        self._addresses = _GangStore(self.outcomes)
        super().__init__(host, secret, self._addresses)

    def close(self) -> None:
        """Also waits for the last answers: a task that does not get that to its report asks for half a minute."""
        self.outcomes.close()
        self._addresses.close()
        super().close()
        self.door.join(_LAST_ANSWERS_S)


class RendezvousClient:
    """What a task asks of the server. Every request opens its own connection and has a time limit."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._host, self._port, self._secret = host, port, secret

    def horovod_environment(self) -> dict[str, str]:
        """Where Horovod's C++ client finds the store; see the module's docstring for the odd address."""
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{self._host}:{self._port}/{self._secret}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": "0",
        }

    def record(self, rank: int, outcome: Outcome) -> int | None:
        """Tell the server how `rank` ended; how many had reported before. Raises OSError when the server is gone."""
        report = json.dumps({"status": outcome.status, "kind": outcome.kind})
        answer = self._request("PUT", CONTROL, str(rank), report.encode())[1]
        return int(answer) if answer else None

    def ready(self, rank: int) -> None:
        """Say that `rank` waits for the others. Raises OSError when the server is gone."""
        self._request("PUT", CONTROL, f"ready/{rank}", b"")

    def all_ready(self) -> bool:
        """Long poll: whether every rank is ready. Raises OSError when the server is gone."""
        return self._request("GET", CONTROL, "ready")[0] == 200

    def stop_cause(self, rank: int | None = None) -> StopCause | None:
        """Long poll: why this rank must stop, or None. Tells the server that the task of `rank` is there, too.

        Raises OSError when the server is gone.
        """
        status, answer = self._request("GET", CONTROL, "stop" if rank is None else f"stop/{rank}")
        return StopCause(**json.loads(answer)) if status == 200 else None

    def alive(self, rank: int, sign: SignOfLife, limit_s: float) -> None:
        """Say what is known of `rank`. Raises OSError when the server does not answer within `limit_s` seconds."""
        self._request("PUT", CONTROL, f"alive/{rank}", sign.to_plain(), limit_s)

    def put(self, scope: str, key: str, value: bytes) -> None:
        """Raises OSError when the server is gone."""
        self._request("PUT", scope, key, value)

    def delete(self, scope: str, key: str) -> None:
        """Raises OSError when the server is gone."""
        self._request("DELETE", scope, key)

    def scope(self, name: str, at_least: int) -> dict[str, bytes]:
        """Long poll: all values of a scope, as soon as there are that many. Raises OSError when the server is gone."""
        status, answer = self._request("GET", CONTROL, f"scope/{at_least}/{name}")
        if status != 200:
            return {}
        return {key: b64decode(value) for key, value in json.loads(answer).items()}

    def _request(
        self, method: str, scope: str, key: str, body: bytes | None = None, limit_s: float = _REQUEST_TIMEOUT_S
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=limit_s)
        try:
            connection.request(method, f"/{self._secret}:0/{scope}/{key}", body)
            response = connection.getresponse()
            return response.status, response.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


def retried(request: Callable[[], T]) -> T:
    """`request()` until it succeeds. Raises its OSError when it still fails after half a minute."""
    deadline = time.monotonic() + _RETRY_S
    while True:
        try:
            return request()
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_PAUSE_S)  # another process is to come back: there is nothing to wait for


class _GangStore(Store):
    """Addresses by (scope, key), and below the scope "control" what `RendezvousClient` asks for."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        self._scopes: dict[str, dict[str, bytes]] = {}
        self._packed: dict[str, bytes] = {}  # a scope as one answer, until it changes
        self._closed = False
        self._changed = threading.Condition()

    def get(self, scope: str, key: str) -> bytes | None:
        if scope == CONTROL:
            return self._control(*key.partition("/")[::2])
        with self._changed:
            return self._scopes.get(scope, {}).get(key)

    def put(self, scope: str, key: str, value: bytes) -> bytes:
        if scope != CONTROL:
            self._change(scope, lambda values: values.__setitem__(key, value))
        elif key.startswith("ready/"):
            self._outcomes.ready(int(key.removeprefix("ready/")))
        elif key.startswith("alive/"):
            self._outcomes.alive(int(key.removeprefix("alive/")), SignOfLife.from_plain(value))
        else:
            return str(self._outcomes.record(int(key), Outcome(**json.loads(value)))).encode()
        return b""

    def delete(self, scope: str, key: str) -> None:
        """A rank is connected. All others are then, too (gloo_context.cc), so its address serves nobody any more."""
        self._change(scope, lambda values: values.pop(key, None))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _control(self, what: str, argument: str) -> bytes | None:
        if what == "ready":
            return b"" if self._outcomes.all_ready(_LONG_POLL_S) else None
        if what == "scope":
            at_least, _, scope = argument.partition("/")
            return self._whole(scope, int(at_least))
        if argument:
            self._outcomes.heard(int(argument))
        cause = self._outcomes.stop_cause(_LONG_POLL_S)
        return None if cause is None else json.dumps(asdict(cause)).encode()

    def _whole(self, scope: str, at_least: int) -> bytes | None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._scopes.get(scope, ())) >= at_least or self._closed, _LONG_POLL_S)
            if len(self._scopes.get(scope, ())) < at_least:
                return None
            if scope not in self._packed:
                text = json.dumps({key: b64encode(value).decode() for key, value in self._scopes[scope].items()})
                self._packed[scope] = text.encode()
            return self._packed[scope]

    def _change(self, scope: str, change: Callable[[dict[str, bytes]], Any]) -> None:
        with self._changed:
            change(self._scopes.setdefault(scope, {}))
            self._packed.pop(scope, None)
            self._changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: Any  # the StoreServer
    timeout = _REQUEST_TIMEOUT_S

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(_LONGEST_REQUEST_LINE)
        path = self.raw_requestline.split(b" ")[1:2]
        self._parts = path[0].split(b"/", 3) if path else []
        if len(self._parts) != 4 or not hmac.compare_digest(self._parts[1], self.server.first_part):
            self._refuse()
            return
        self.server.door.strangers.forget(self.connection)
        if not self.parse_request():
            return
        try:
            self._serve(self._parts[2].decode(), self._parts[3].decode())
        except OSError:
            raise  # cut off
        except Exception:  # it has the secret, and asks for what cannot be
            self._answer(400)

    def _serve(self, scope: str, key: str) -> None:
        store, value = self.server.store, None
        if self.command == "PUT":
            length = int(self.headers.get("Content-Length", 0))
            if not 0 <= length <= _LONGEST_BODY:
                self._answer(413)
                return
            value = store.put(scope, key, self.rfile.read(length))
        elif self.command == "DELETE":
            store.delete(scope, key)
            value = b""
        elif self.command == "GET":
            value = store.get(scope, key)
        self._answer(404 if value is None else 200, value or b"")

    def _refuse(self) -> None:
        """Answer without having read the rest. It is thrown away for as long as strangers are tolerated: closing a
        connection with unread data would take the answer with it."""
        self.request_version = self.default_request_version
        self.wfile.write(b"HTTP/1.0 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        self.connection.shutdown(socket.SHUT_WR)
        for _ in range(16):
            if not self.connection.recv(1 << 16):
                return

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Paths carry the secret: nothing is logged."""
