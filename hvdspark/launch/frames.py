"""Length-prefixed messages on the pipes between processes of a gang.

Task to rank, on the rank's standard input: the pickled function, the rank's assignment (JSON), and "go" once all ranks
are ready; at any time, why it is asked to make room. Rank to task, on a pipe of its own: "ready", any number of events
and signs of life (JSON), then one result or one failure.

Same-host launcher to keeper: what its task is (JSON), the pickled function, the introductions of all tasks (JSON).
Keeper to launcher: its introduction (JSON), then the rank's outcome (a line of JSON, and the result); or the failure of
the task itself.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from hvdspark.specs import World

PROGRAM = b"P"
ASSIGNMENT = b"A"
GO = b"G"
PREEMPT = b"S"
READY = b"Y"
EVENT = b"E"
PULSE = b"L"
RESULT = b"R"
FAILURE = b"F"
TASK = b"T"
INTRODUCTION = b"I"
OUTCOME = b"O"

_HEADER = struct.Struct("<cQ")  # kind, bytes that follow
_PIECE = 1 << 24


@dataclass(frozen=True)
class Assignment:
    """What a rank learns when the tasks have met. Travels as JSON (`specs.to_json`).

    Attributes:
        environment: variables that could not be known when the process was started.
        device: what the user asked for: "auto", "cpu" or "cuda".
        gpu_scheduled: a GPU was assigned to the task, or nobody assigns any here.
        files: folder of `SparkFiles`, where there are any or broadcast variables; else None.
        broadcasts: file of each broadcast variable in the program, by id.
        pulse_every_s: how often the rank gives a sign of life, in seconds.
        scratch: see `RankContext`.
    """

    world: World
    environment: dict[str, str]
    device: str
    gpu_scheduled: bool
    generation: int
    store_uri: str | None
    files: str | None
    broadcasts: dict[str, str]
    pulse_every_s: float = 1.0
    scratch: str | None = None


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
    body = _read(stream, length)
    return None if len(body) < length else (kind, body)


def _read(stream: BinaryIO, length: int) -> bytes:
    """Up to so many bytes; memory is taken for what comes, not for what is announced."""
    body = stream.read(min(length, _PIECE))
    if len(body) == length:
        return body
    pieces = [body]
    while length > (have := sum(map(len, pieces))) and (piece := stream.read(min(length - have, _PIECE))):
        pieces.append(piece)
    return b"".join(pieces)
