"""Addresses of this machine and of executors, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import socket

import psutil

LOOPBACK = "127.0.0.1"
_BACKLOG = 1024  # every rank connects at the same moment
_PORTS = 16


def host_of(address: str) -> str:
    """The host in Spark's "host:port" or "[host]:port"."""
    return unbracketed(address.rpartition(":")[0])


def unbracketed(host: str) -> str:
    """ "[fd00::1]", as Spark writes IPv6 addresses, without the brackets."""
    return host.removeprefix("[").removesuffix("]")


def listen(host: str, port: int = 0) -> socket.socket:
    """A listening TCP socket. Raises OSError.

    Args:
        host: a name or an address of this machine; "" is all of them, IPv6 included where there is any.
        port: 0 for any that is free.
    """
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family = socket.AF_INET if any(entry[0] == socket.AF_INET for entry in found) else socket.AF_INET6
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def listen_from(host: str, first_port: int) -> socket.socket:
    """Like `listen`, at the first of 16 ports that is free: several fits at once take one each. Raises OSError."""
    ports = range(first_port, first_port + _PORTS) if first_port else (0,)
    for port in ports[:-1]:
        with contextlib.suppress(OSError, OverflowError):
            return listen(host, port)
    return listen(host, min(ports[-1], 65535))


def interface_towards(host: str) -> str:
    """Name of the network interface from which `host` is reached: what Gloo binds to. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # UDP: only looks up the route, sends nothing
        own = probe.getsockname()[0].partition("%")[0]
    names = psutil.net_if_addrs()
    has_it = (
        name for name, entries in names.items() if any(entry.address.partition("%")[0] == own for entry in entries)
    )
    return next(has_it, "")


def keep_alive(connection: socket.socket, idle_s: int = 30) -> None:
    """Let the kernel ask a silent peer whether it is there, so that no firewall forgets the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", idle_s), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
