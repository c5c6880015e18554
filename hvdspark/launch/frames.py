"""Length-prefixed messages on the pipes between a barrier task and its rank process.

Task to rank, on the rank's standard input: the pickled function, the rank's assignment (JSON), and "go" once all ranks
are ready. Rank to task, on a pipe of its own: "ready", any number of events (JSON), then one result or one failure.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

PROGRAM = b"P"
ASSIGNMENT = b"A"
GO = b"G"
READY = b"Y"
EVENT = b"E"
RESULT = b"R"
FAILURE = b"F"

_HEADER = struct.Struct("<cQ")  # kind, bytes that follow


def write_frame(stream: BinaryIO, kind: bytes, body: bytes) -> None:
    stream.write(_HEADER.pack(kind, len(body)))
    stream.write(body)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    """(kind, body), or None at the end of the stream. A frame cut short by a dying writer counts as the end."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    kind, length = _HEADER.unpack(header)
    body = stream.read(length)
    return None if len(body) < length else (kind, body)
