"""Signed lines. Each counts once, on one connection, in its place: whoever records lines cannot use them again.

    task -> driver    its nonce, a line
    driver -> task    its nonce, a line
    both              "SIGNATURE TEXT" lines; the first one of the task shows the driver that it has the secret

The signature is an HMAC of the number of the line and its text, under a key of the run's secret, both nonces and the
side that speaks. Nonces need not be secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

LONGEST_NONCE = 128


def nonce() -> bytes:
    """The first line of either side."""
    return secrets.token_hex(16).encode() + b"\n"


@dataclass(frozen=True)
class Seals:
    """Of one connection.

    Attributes:
        task, driver: of what either says.
    """

    task: Seal
    driver: Seal

    @classmethod
    def of(cls, secret: str, task_nonce: bytes, driver_nonce: bytes) -> Seals:
        """From the first lines of both sides."""
        both = hashlib.sha256(task_nonce).digest() + hashlib.sha256(driver_nonce).digest()
        keys = (hmac.digest(secret.encode(), side + both, "sha256") for side in (b"task", b"driver"))
        return cls(*map(Seal, keys))


class Seal:
    """Of one side: one object signs what that side says, and one of the other side checks it. Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._count = 0

    def line(self, text: str) -> bytes:
        """The next line, with its end."""
        return b"%s %s\n" % (self._next(text.encode()), text.encode())

    def text(self, line: bytes) -> str | None:
        """What the next line says; None where it is not that. Raises ValueError for what is not UTF-8."""
        signature, _, text = line.rstrip(b"\n").partition(b" ")
        return text.decode() if hmac.compare_digest(signature, self._next(text)) else None

    def _next(self, text: bytes) -> bytes:
        number, self._count = self._count, self._count + 1
        return hmac.new(self._key, b"%d %s" % (number, text), hashlib.sha256).hexdigest().encode()
