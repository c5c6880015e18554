"""What a rank prints, as lines: in pieces of bounded size, whatever it prints."""

from __future__ import annotations

import collections
import contextlib
import sys
import time

TAIL_LINES = 40
_LONGEST_LINE = 2000
_PROGRESS_EVERY_S = 1.0


class Output:
    """Shows lines in the executor's log, and keeps the last ones for an error message.

    A carriage return means that what follows is shown in its place, as progress bars do: of such texts the last one
    is shown, at most once a second while they change.

    Attributes:
        prefix: in front of each line in the log.
    """

    def __init__(self) -> None:
        self.prefix = ""
        self._pending = b""
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._unfinished = ""  # the text that is replaced by the next one, if it is the last in the log
        self._shown_s = -_PROGRESS_EVERY_S

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join([*self._tail, self._unfinished] if self._unfinished else self._tail)

    def feed(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._finish(line)
        if b"\r" in self._pending:
            text = _last_text(self._pending)
            self._progress(text)
            self._pending = text + (b"\r" if self._pending.endswith(b"\r") else b"")
        if len(self._pending) > _LONGEST_LINE:
            self._finish(self._pending)
            self._pending = b""

    def end(self) -> None:
        """The process has closed its output."""
        if self._pending:
            self._finish(self._pending)
            self._pending = b""

    def _finish(self, line: bytes) -> None:
        self._unfinished = ""
        text = _last_text(line).decode(errors="replace")
        for start in range(0, max(len(text), 1), _LONGEST_LINE):
            self._tail.append(text[start : start + _LONGEST_LINE])
            self._show(text[start : start + _LONGEST_LINE])

    def _progress(self, line: bytes) -> None:
        self._unfinished = line[:_LONGEST_LINE].decode(errors="replace")
        now = time.monotonic()
        if now - self._shown_s >= _PROGRESS_EVERY_S and self._unfinished:
            self._shown_s = now
            self._show(self._unfinished)

    def _show(self, text: str) -> None:
        # A full disk or a closed log must not fill the rank's pipe.
        with contextlib.suppress(OSError, ValueError):
            print(f"{self.prefix}{text}", file=sys.stderr, flush=True)


def _last_text(line: bytes) -> bytes:
    """What a terminal would show last of a line: the text after the last carriage return that is followed by one."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]
