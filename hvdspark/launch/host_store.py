"""Horovod's store as one rank sees it: a server on loopback, in the rank's own task.

Horovod asks for the addresses of every peer, one by one and twice, over a connection each: 130,000 requests of 256
ranks. Here all of a scope (all ranks; the ranks of a host; the ranks of the same place on every host) arrive in one
answer, and the rank's many questions stay on its host. They also stay on IPv4 loopback, which is all that Horovod's
client can speak (HTTPRequest.hpp), whatever the network between the executors is.

The rank finds it in its environment, which user code may print or hand to other programs. So this server has a secret
of its own: that of the gang is in no environment, and who reads this one can ask for addresses, on this host alone.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import zlib

from hvdspark.launch.addresses import LOOPBACK
from hvdspark.launch.rendezvous import CONTROL, RendezvousClient, Store, StoreServer, retried
from hvdspark.specs import World

# Names of Horovod's scopes (gloo_context.h); those of process sets end otherwise, and their sizes are not known here.
_GLOBAL, _LOCAL, _CROSS = "global", "local_", "cross_"


class HostStore(StoreServer):
    """Listens from construction on; `close()` frees port and threads."""

    def __init__(self, gang: RendezvousClient, world: World) -> None:
        self._secret = secrets.token_hex(16)
        super().__init__(LOOPBACK, self._secret, _Mirror(gang, world))

    def horovod_environment(self) -> dict[str, str]:
        return RendezvousClient(LOOPBACK, self.port, self._secret).horovod_environment()


class _Mirror(Store):
    """Answers from what it has of a scope; else asks the gang's server for the whole scope."""

    def __init__(self, gang: RendezvousClient, world: World) -> None:
        self._gang, self._world = gang, world
        self._scopes: dict[str, dict[str, bytes]] = {}
        self._lock = threading.Lock()

    def get(self, scope: str, key: str) -> bytes | None:
        _refuse_control(scope)
        with self._lock:
            known = self._scopes.get(scope, {})
            if key not in known:
                with contextlib.suppress(OSError):  # Horovod asks again, as for what is not there yet
                    known = self._gang.scope(scope, _size(scope, self._world) or len(known) + 1)
                    self._scopes[scope] = known
            return zlib.decompress(known[key]) if key in known else None

    def put(self, scope: str, key: str, value: bytes) -> bytes:
        _refuse_control(scope)
        with self._lock:
            self._scopes.pop(scope, None)  # Horovod is initialised again: the others have new addresses, too
            # 136 bytes for each peer, mostly zeros.
            retried(lambda: self._gang.put(scope, key, zlib.compress(value, level=1)))
        return b""

    def delete(self, scope: str, key: str) -> None:
        _refuse_control(scope)
        retried(lambda: self._gang.delete(scope, key))


def _refuse_control(scope: str) -> None:
    """What tasks say of their ranks is not said for a rank by whoever reads its environment."""
    if scope == CONTROL:
        raise ValueError("not a scope of Horovod's")


def _size(scope: str, world: World) -> int | None:
    """How many ranks share a scope; None where that is not known."""
    if scope == _GLOBAL:
        return world.size
    if "process_set" in scope:
        return None
    if scope.startswith(_LOCAL):
        return world.local_size
    return world.cross_size if scope.startswith(_CROSS) else None
