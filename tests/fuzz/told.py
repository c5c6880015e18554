"""Targets that are told something: the gang's server, the channel, frames between processes, specs."""

from __future__ import annotations

import contextlib
import io
import json
import queue
import random
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdspark.launch.channel import ChannelListener
from hvdspark.launch.frames import EVENT, RESULT, read_frame, write_frame
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer
from hvdspark.launch.seals import Seals, nonce
from hvdspark.specs import ColumnSpec, DatasetSpec, RowGroup, RowGroups, TrainSpec, WarmStart, from_json, to_json
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.fuzz.target import AS_TOLD, RIGHT, WRONG, Target

_SECRET = "0123456789abcdef0123456789abcdef"
_PATIENCE_S = 10.0


class Rendezvous(Target):
    """The gang's server: it answers or hangs up, goes on serving, and no rank ends or is ready that did not say so."""

    name = "rendezvous"

    def __init__(self, folder: Path) -> None:
        self._server = RendezvousServer("127.0.0.1", 3, _SECRET)
        self._client = RendezvousClient("127.0.0.1", self._server.port, _SECRET)
        self._client.put("global", "0", b"kept")
        self._secret = f"/{_SECRET}:0/".encode()

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        body = rng.choice((b"", b'{"status": "ok", "kind": ""}', b"\0" * 300))
        asked = rng.choice(
            (b"GET %sglobal/0", b"PUT %slocal_h/1", b"DELETE %slocal_h/1", b"PUT %scontrol/7", b"GET %sx/y")
        )
        request = asked % self._secret + b" HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        content, words = mutated_bytes(request, rng)
        return words, lambda: self._send(content)

    def _send(self, content: bytes) -> str:
        address = ("127.0.0.1", self._server.port)
        with (
            socket.create_connection(address, timeout=_PATIENCE_S) as connection,
            contextlib.suppress(ConnectionError),  # hung up on
        ):
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        outcomes = self._server.outcomes
        served = self._client.scope("global", 1).get("0") is not None
        quiet = not outcomes.must_stop(0) and not outcomes.all_ready(0)
        return RIGHT if served and quiet else WRONG

    def close(self) -> None:
        self._server.close()


class Channel(Target):
    """The driver's listener: of what was signed it hears a beginning, and nothing else."""

    name = "channel"

    def __init__(self, folder: Path) -> None:
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lost: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listener = ChannelListener("127.0.0.1", _SECRET, self._heard.put, self._lost.put)
        self._events = [
            {"event": "started", "rank": 0, "host": "h"},
            *({"event": "steps", "step": k} for k in range(5)),
        ]

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        return rng.choice((self._of_stranger, self._of_thief, self._with_the_secret))(rng)

    def _of_stranger(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        """Bytes of a session, changed on the way."""
        state = rng.getstate()
        words = mutated_bytes(b"x" * 700, rng)[1]

        def use() -> str:
            again = random.Random()
            again.setstate(state)
            return self._talk(lambda seals: mutated_bytes(self._session(seals), again)[0], self._events)

        return f"on the way: {words}", use

    def _of_thief(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        """Lines in another order, or some of them twice."""
        order = [rng.randrange(6) for _ in range(8)]

        def said(seals: Seals) -> bytes:
            lines = self._session(seals).splitlines(keepends=True)
            return b"".join(lines[k] for k in order)

        return f"lines in order {order}", lambda: self._talk(said, self._events)

    def _with_the_secret(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        text, words = mutated_json(self._events[1], rng)
        hello = json.dumps(self._events[0])

        def said(seals: Seals) -> bytes:
            return seals.task.line(hello) + seals.task.line(text.replace("\n", " "))

        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        told = [self._events[0], *([event] if isinstance(event, dict) else [])]
        return f"signed: {words}", lambda: self._talk(said, told)

    def _session(self, seals: Seals) -> bytes:
        return b"".join(seals.task.line(json.dumps(event)) for event in self._events)

    def _talk(self, said: Callable[[Seals], bytes], told: list[Any]) -> str:
        address = ("127.0.0.1", self._listener.port)
        with (
            socket.create_connection(address, timeout=_PATIENCE_S) as connection,
            connection.makefile("rb") as lines,
            contextlib.suppress(ConnectionError),  # hung up on
        ):
            connection.sendall(own := nonce())
            connection.sendall(said(Seals.of(_SECRET, own, lines.readline())))
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):
                pass
        heard = []
        # The other side has closed: nothing more will be heard.
        while not self._heard.empty():
            heard.append(self._heard.get())
        return RIGHT if [str(event) for event in heard] == [str(event) for event in told[: len(heard)]] else WRONG

    def close(self) -> None:
        self._listener.close()


class Frames(Target):
    """The pipes between processes of a gang: whole frames, then the end."""

    name = "frames"

    def __init__(self, folder: Path) -> None:
        stream = io.BytesIO()
        for kind, body in ((EVENT, b'{"event": 1}'), (RESULT, b"result" * 20)):
            write_frame(stream, kind, body)
        self._whole = stream.getvalue()

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        content, words = mutated_bytes(self._whole, rng)
        return words, lambda: self._read(content)

    def _read(self, content: bytes) -> str:
        stream, total = io.BytesIO(content), 0
        while (frame := read_frame(stream)) is not None:
            total += len(frame[0]) + 8 + len(frame[1])
        return AS_TOLD if total <= len(content) else WRONG


class Specs(Target):
    """What the driver tells ranks. It comes from a process of the same user, so an error of Python's will do."""

    name = "specs"
    refusals = (TypeError, KeyError, ValueError, AttributeError, RecursionError, zlib.error)

    def __init__(self, folder: Path) -> None:
        groups = RowGroups.of([RowGroup("train/a", 0, 5), RowGroup("train/a", 1, 7), RowGroup("train/b", 0, 9)])
        data = DatasetSpec("datasets/d", (ColumnSpec("x", "float32", "scalar"),), groups)
        warm = WarmStart("file:///s", "runs/a", "f", ("w",), ())
        self._whole = TrainSpec("r", "file:///s", data, ("x",), ("y",), schedule_args={"a": 1.0}, warm_start=warm)

    def attempt(self, rng: random.Random) -> tuple[str, Callable[[], str]]:
        text, words = mutated_json(json.loads(to_json(self._whole)), rng)

        def use() -> str:
            return RIGHT if from_json(TrainSpec, text) == self._whole else AS_TOLD

        return words, use
