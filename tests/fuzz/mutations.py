"""What may have happened to bytes and to JSON: by chance, or by somebody who wants to see what happens."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

_HUGE = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**60, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "0", "\x00", "\ud800", "é" * 300, "x" * 100_000),
    *("../../etc/passwd", "/etc/passwd", "file:///etc/passwd", "..\\..\\x", "http://169.254.169.254/", "a/../..", "~"),
    *([], [[]], [None], {}, {"": {}}, {"tensor": 0}, {"same": 0}, {"import": "os:system"}, ["a"] * 50),
)
DEEP = 100_000


def mutated_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Other bytes, and what was done in words."""
    name, mutate = rng.choice(_OF_BYTES)
    changed = mutate(data, rng)
    return (changed, name) if changed != data else (data + b"\0", "one more byte")


def mutated_json(value: Any, rng: random.Random) -> tuple[str, str]:
    """Text of other JSON (or of none), and what was done in words."""
    name, mutate = rng.choice(_OF_JSON)
    return mutate(copy.deepcopy(value), rng), name


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        bit = rng.randrange(8 * len(changed)) if changed else 0
        if changed:
            changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _flipped_at_an_end(data: bytes, rng: random.Random) -> bytes:
    """Headers and footers are there."""
    edge = min(len(data), 256)
    if rng.random() < 0.5:
        return _flipped(data[:edge], rng) + data[edge:]
    return data[: len(data) - edge] + _flipped(data[len(data) - edge :], rng)


def _with_a_number(data: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, 8, max(0, len(data) - 8), rng.randrange(len(data) + 1)))
    return data[:at] + rng.choice(_HUGE).to_bytes(8, "little")[: rng.choice((4, 8))] + data[at + 8 :]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at] + rng.choice((b"\0" * 9, b"\xff\xfe\x80", b"[" * DEEP, rng.randbytes(40), b"\r\n", b'"')) + data[at:]
    )


def _repeated(data: bytes, rng: random.Random) -> bytes:
    one, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:other] + data[one:other] + data[other:]


def _without(data: bytes, rng: random.Random) -> bytes:
    one, other = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:one] + data[other:]


_OF_BYTES: list[tuple[str, Callable[[bytes, random.Random], bytes]]] = [
    ("bits flipped", _flipped),
    ("bits flipped", _flipped),
    ("bits flipped at an end", _flipped_at_an_end),
    ("a huge number", _with_a_number),
    ("bytes inserted", _inserted),
    ("a part repeated", _repeated),
    ("a part missing", _without),
    ("cut off", lambda data, rng: data[: rng.randrange(len(data) + 1)]),
    ("nothing left", lambda data, rng: b""),
    ("nonsense", lambda data, rng: rng.randbytes(rng.choice((1, 8, 100, 5000)))),
    ("zeros", lambda data, rng: bytes(len(data))),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be replaced."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _chosen(value: Any, rng: random.Random) -> tuple[Any, Any]:
    """What holds something, and its key there."""
    path = rng.choice(_places(value) or [()])
    return (_at(value, path[:-1]), path[-1]) if path else ({"": value}, "")


def _with_another(value: Any, rng: random.Random) -> str:
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = _chosen(value, rng)
        holder[key] = rng.choice(_ODD)
    return json.dumps(value)


def _with_a_near_one(value: Any, rng: random.Random) -> str:
    """Of the same type, and not the same."""
    holder, key = _chosen(value, rng)
    item = holder[key]
    if isinstance(item, bool):
        holder[key] = not item
    elif isinstance(item, int | float):
        holder[key] = rng.choice((item + 1, item - 1, -item, item * 2, item * 10**12))
    elif isinstance(item, str):
        holder[key] = rng.choice((item + "x", item[1:], item.upper(), item[::-1], item * 2))
    elif isinstance(item, list):
        rng.shuffle(item)
        del item[rng.randrange(len(item) + 1) :]
    else:
        holder[key] = {}
    return json.dumps(value)


def _without_one(value: Any, rng: random.Random) -> str:
    holder, key = _chosen(value, rng)
    del holder[key]
    return json.dumps(value)


def _renamed(value: Any, rng: random.Random) -> str:
    holder, key = _chosen(value, rng)
    if isinstance(holder, dict):
        holder[rng.choice((str(key) + "x", "", str(key).upper(), "__class__", "self"))] = holder.pop(key)
    return json.dumps(value)


def _swapped(value: Any, rng: random.Random) -> str:
    (one, key), (other, other_key) = _chosen(value, rng), _chosen(value, rng)
    one[key] = copy.deepcopy(other[other_key])
    return json.dumps(value)


def _twice(value: Any, rng: random.Random) -> str:
    """A key of JSON twice, with another value."""
    text = json.dumps(value)
    if not isinstance(value, dict) or not value:
        return text + text
    key = rng.choice(sorted(value))
    again = f"{json.dumps(key)}: {json.dumps(rng.choice(_ODD))}"
    return f"{{{again}, {text[1:]}" if rng.random() < 0.5 else f"{text[:-1]}, {again}}}"


def _deep(value: Any, rng: random.Random) -> str:
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    depth = rng.choice((900, 3000, DEEP))
    holder, key = _chosen(value, rng)
    holder[key] = "@deep@"
    return json.dumps(value).replace('"@deep@"', opened * depth + "1" + closed * depth)


_OF_JSON: list[tuple[str, Callable[[Any, random.Random], str]]] = [
    ("another value", _with_another),
    ("another value", _with_another),
    ("another value of its type", _with_a_near_one),
    ("another value of its type", _with_a_near_one),
    ("an entry missing", _without_one),
    ("an entry renamed", _renamed),
    ("an entry from elsewhere", _swapped),
    ("a key twice", _twice),
    ("deep nesting", _deep),
    ("cut off", lambda value, rng: json.dumps(value)[: rng.randrange(len(json.dumps(value)))]),
]
