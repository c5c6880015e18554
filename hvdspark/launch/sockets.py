"""Whose answers a process waits for: what the kernel knows of its TCP connections (Linux)."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_ESTABLISHED = "01"
_RETRANSMITS = "01"
# After so many tries in a row, more than a second after the first, nobody acknowledges.
_TRIES = 3


def unanswered(pid: int) -> list[str]:
    """Addresses at the other ends of connections of a process that do not acknowledge what was sent to them.

    Their host is down, frozen, or not reached: a process that merely reads nothing has its host acknowledge for it.
    Empty where the kernel does not say.
    """
    try:
        inodes = set(_sockets(pid))
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6") if inodes]
    except OSError:
        return []
    return sorted({address for table in tables for address, inode in retransmitting(table) if inode in inodes})


def retransmitting(table: str) -> Iterator[tuple[str, int]]:
    """(remote address, inode) of the connections in a text of /proc/net/tcp or tcp6 to which the same bytes are sent
    again and again. Pure.
    """
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _ESTABLISHED or fields[5].partition(":")[0] != _RETRANSMITS:
            continue
        if int(fields[6], 16) >= _TRIES:
            yield _address(fields[2].partition(":")[0]), int(fields[9])


def _address(digits: str) -> str:
    """ "0100007F" is 127.0.0.1: 32-bit words in the byte order of the host; IPv4 in IPv6 as IPv4."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    if len(packed) == 4:
        return socket.inet_ntop(socket.AF_INET, packed)
    return socket.inet_ntop(socket.AF_INET6, packed).removeprefix("::ffff:")


def _sockets(pid: int) -> Iterator[int]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):  # closed meanwhile
            if found := re.match(r"socket:\[(\d+)\]", os.readlink(f"{folder}/{name}")):
                yield int(found[1])
