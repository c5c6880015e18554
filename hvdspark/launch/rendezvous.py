"""The one server of a gang: Horovod's Gloo rendezvous, and who failed first.

The barrier task of partition 0 binds it before the allGather and keeps it until every rank has reported, so no
port is ever released and bound again. It speaks the GET / PUT / DELETE protocol of Horovod's `HTTPStore`
(horovod/common/gloo/http_store.cc). That client cannot send a header, but it builds its URL as
`http://{ADDR}:{PORT}/{scope}/{key}`, so giving it `ADDR = host:port/secret` and `PORT = 0` puts the per-run secret
in front of every path; requests without it are refused.

Beside the store the server keeps the *outcomes* of the ranks and decides when the others must stop:

* a rank that failed by itself stops the others at once;
* a rank that failed because a peer vanished (`peer_lost`) only does so after `GRACE_S`, time for the culprit's own
  report to arrive, so that the victim is not blamed.
"""

from __future__ import annotations

import hmac
import http.client
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GRACE_S = 2.0
_LONG_POLL_S = 10.0
_REQUEST_TIMEOUT_S = 30.0
_CONTROL = "control"


class Outcomes:
    """Thread-safe record of how each rank ended, and the decision to stop the rest."""

    def __init__(self, size: int, grace_s: float = GRACE_S) -> None:
        self._size, self._grace_s = size, grace_s
        self._by_rank: dict[int, dict[str, Any]] = {}
        self._first_peer_lost_s: float | None = None
        self._stop = False
        self._closed = False
        self._changed = threading.Condition()

    def record(self, rank: int, outcome: dict[str, Any]) -> None:
        """Note the outcome `{"status": "ok" | "failed" | "aborted", "kind": ...}` of a rank; the first one counts."""
        with self._changed:
            if rank in self._by_rank:
                return
            self._by_rank[rank] = outcome
            if outcome["status"] == "failed":
                if outcome["kind"] != "peer_lost":
                    self._stop = True
                elif self._first_peer_lost_s is None:
                    self._first_peer_lost_s = time.monotonic()
            self._changed.notify_all()

    def must_stop(self, wait_s: float) -> bool:
        """Whether the ranks that still run must stop; waits up to `wait_s` seconds for that to become true."""
        deadline = time.monotonic() + wait_s
        with self._changed:
            while True:
                now = time.monotonic()
                if self._first_peer_lost_s is not None and now >= self._first_peer_lost_s + self._grace_s:
                    self._stop = True
                if self._stop or self._closed or now >= deadline:
                    return self._stop
                until = deadline
                if self._first_peer_lost_s is not None:
                    until = min(until, self._first_peer_lost_s + self._grace_s)
                self._changed.wait(until - now)

    def wait_all(self, wait_s: float) -> bool:
        """Whether every rank has an outcome; waits up to `wait_s` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._by_rank) == self._size, wait_s)

    def close(self) -> None:
        """Release every waiting thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class RendezvousServer:
    """Listens from construction on; `close()` frees port and threads."""

    def __init__(self, host: str, size: int, secret: str) -> None:
        """Bind `host` (an address of this machine; "" for all) on a free port."""
        self.outcomes = Outcomes(size)
        self._http = _Server((host, 0), _Handler)
        self._http.secret, self._http.outcomes = secret, self.outcomes
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, name="hvdspark-rendezvous", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self.outcomes.close()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=5)


class RendezvousClient:
    """What a barrier task asks of the server. Every request opens its own connection and has a time limit."""

    def __init__(self, host: str, port: int, secret: str) -> None:
        self._host, self._port, self._secret = host, port, secret

    def horovod_environment(self) -> dict[str, str]:
        """Where Horovod's C++ client finds the store; see the module's docstring for the odd address."""
        return {
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": f"{self._host}:{self._port}/{self._secret}",
            "HOROVOD_GLOO_RENDEZVOUS_PORT": "0",
        }

    def record(self, rank: int, outcome: dict[str, Any]) -> None:
        """Tell the server how `rank` ended. Raises OSError when the server is gone."""
        self._request("PUT", str(rank), json.dumps(outcome).encode())

    def must_stop(self) -> bool:
        """Long poll: whether this rank must stop. Raises OSError when the server is gone."""
        return self._request("GET", "stop") == 200

    def _request(self, method: str, key: str, body: bytes | None = None) -> int:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_REQUEST_TIMEOUT_S)
        try:
            connection.request(method, f"/{self._secret}:0/{_CONTROL}/{key}", body)
            response = connection.getresponse()
            response.read()
            return response.status
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024  # every rank connects at the same moment
    secret: str
    outcomes: Outcomes

    def __init__(self, *arguments: Any) -> None:
        self.values: dict[tuple[str, str], bytes] = {}
        self.lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        # HTTPServer.server_bind also asks DNS for its own name, which can take seconds on a cluster.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that vanished in the middle of a request is dead; its outcome says so."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        scope, key = self._authenticated_path()
        if scope == _CONTROL:
            self._answer(200 if self.server.outcomes.must_stop(_LONG_POLL_S) else 404)
        elif scope is not None:
            with self.server.lock:
                value = self.server.values.get((scope, key))
            self._answer(404 if value is None else 200, value or b"")

    def do_PUT(self) -> None:
        scope, key = self._authenticated_path()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if scope == _CONTROL:
            self.server.outcomes.record(int(key), json.loads(body))
        elif scope is not None:
            with self.server.lock:
                self.server.values[scope, key] = body
        else:
            return
        self._answer(200)

    def do_DELETE(self) -> None:
        # Horovod says that it is done with a scope. Nothing is freed early: the server lives for one gang.
        if self._authenticated_path()[0] is not None:
            self._answer(200)

    def _authenticated_path(self) -> tuple[str | None, str]:
        parts = self.path.split("/", 3)
        if len(parts) != 4 or not hmac.compare_digest(parts[1].encode(), f"{self.server.secret}:0".encode()):
            self._answer(403)
            return None, ""
        return parts[2], parts[3]

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Paths carry the secret: nothing is logged."""
