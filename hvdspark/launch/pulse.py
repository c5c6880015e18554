"""Signs of life of a rank: what a thread of it says every few seconds, whatever its other threads do.

The thread needs Python's lock for an instant. A rank whose native code keeps that lock for minutes is silent and
alive, so silence alone ends nothing (`rank_watch`).
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvdspark.collectives.watched import Waiting

_IO = Path("/proc/self/io")


@dataclass(frozen=True)
class Pulse:
    """What a rank says of itself.

    Attributes:
        calls: exchanges of `context().collective` that are over.
        inside: name of the exchange in which it waits for the others; "" where it is in none.
        inside_s: seconds for which it has been in there.
        sent: bytes that its process has written so far, to whatever; -1 where the system does not say.
    """

    calls: int = 0
    inside: str = ""
    inside_s: float = 0.0
    sent: int = -1

    def to_plain(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_plain(cls, text: bytes) -> Pulse:
        """Raises ValueError for what `to_plain` did not give."""
        plain = json.loads(text)
        try:
            return cls(int(plain["calls"]), str(plain["inside"]), float(plain["inside_s"]), int(plain["sent"]))
        except (TypeError, KeyError, OverflowError) as error:
            raise ValueError(f"no sign of life: {plain!r:.200}") from error


def pulse_of(waiting: Waiting) -> Pulse:
    """Of this process."""
    inside = waiting.inside()
    name, seconds = inside if inside is not None else ("", 0.0)
    return Pulse(waiting.calls, name, seconds, _sent())


def begin(send: Callable[[bytes], None], pulse: Callable[[], Pulse], every_s: float) -> threading.Event:
    """Send signs of life from now on. `send` must not block.

    Returns:
        Ends it when it is set.
    """
    over = threading.Event()

    def beat() -> None:
        while not over.is_set():
            send(pulse().to_plain())
            over.wait(every_s)

    threading.Thread(target=beat, name="hvdspark-pulse", daemon=True).start()
    return over


def _sent() -> int:
    try:
        found = re.search(r"^wchar: (\d+)$", _IO.read_text(), re.MULTILINE)
    except OSError:  # not Linux, or a container that hides it
        return -1
    return int(found[1]) if found else -1
