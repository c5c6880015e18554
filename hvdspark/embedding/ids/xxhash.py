"""XXH64 of many texts at once: the function that Spark calls `xxhash64`, bit for bit.

https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hvdspark.embedding.arrays import Int64Array

UInt64Array = NDArray[np.uint64]

# With which Spark begins. It leaves it as it is where a value is null: so it is the hash of null.
SEED = 42

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_STRIPE, _WORD = 32, 8


def utf8(texts: Sequence[str]) -> tuple[NDArray[np.uint8], Int64Array]:
    """The bytes of all texts one after the other, and offsets [n + 1]: text i is bytes[offsets[i] : offsets[i + 1]].

    What cannot be encoded (half of a surrogate pair) is "?", as in Java.
    """
    ends = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=ends[1:])
    data = np.frombuffer("".join(texts).encode(errors="replace"), dtype=np.uint8)
    if len(data) == ends[-1]:  # ASCII alone
        return data, ends
    starts = np.flatnonzero((data & 0xC0) != 0x80)  # of each character
    return data, np.append(starts, len(data))[ends]


def decimal_digits(values: Int64Array) -> tuple[NDArray[np.uint8], Int64Array]:
    """The decimal texts of int64 [n], as `utf8` gives them."""
    negative = values < 0
    left = np.where(negative, -values.view(np.uint64), values.view(np.uint64))  # also of -2**63
    most = int(left.max(initial=0))
    width = len(str(most))
    text = np.empty((len(values), width + 1), dtype=np.uint8)
    used = np.zeros((len(values), width + 1), dtype=bool)
    for place in range(width, 0, -1):
        rest = left // np.uint64(10)
        text[:, place] = (left - rest * np.uint64(10)).astype(np.uint8) + ord("0")
        used[:, place] = left > 0
        left = rest
    used[:, width] = True
    first = width + 1 - used.sum(axis=1)
    rows = np.flatnonzero(negative)
    text[rows, first[rows] - 1] = ord("-")
    used[rows, first[rows] - 1] = True
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(used.sum(axis=1), out=offsets[1:])
    return text[used], offsets


def xxhash64(data: NDArray[np.uint8], offsets: Int64Array) -> UInt64Array:
    """The hashes uint64 [n] of texts as `utf8` gives them."""
    lengths = np.diff(offsets)
    words = np.lib.stride_tricks.sliding_window_view(np.concatenate([data, np.zeros(_WORD, np.uint8)]), _WORD)
    at = offsets[:-1].copy()
    hashes = np.full(len(lengths), np.uint64(SEED) + _P5)
    if len(long := np.flatnonzero(lengths >= _STRIPE)):
        hashes[long] = _of_stripes(words, at[long], lengths[long] // _STRIPE)
        at += lengths & -_STRIPE
    hashes += lengths.astype(np.uint64)
    for number in range(int((lengths % _STRIPE).max(initial=0)) // _WORD):
        some = np.flatnonzero((lengths & (_STRIPE - 1)) >= (number + 1) * _WORD)
        mixed = hashes[some] ^ _round(np.uint64(0), _read(words, at[some]))
        hashes[some] = _rotated(mixed, 27) * _P1 + _P4
        at[some] += _WORD
    if len(some := np.flatnonzero(lengths & 4)):
        half = _read(words, at[some]) & np.uint64(0xFFFFFFFF)
        hashes[some] = _rotated(hashes[some] ^ half * _P1, 23) * _P2 + _P3
        at[some] += 4
    for number in range(3):
        if len(some := np.flatnonzero((lengths & 3) > number)):
            last = words[at[some], 0].astype(np.uint64)
            hashes[some] = _rotated(hashes[some] ^ last * _P5, 11) * _P1
            at[some] += 1
    hashes = (hashes ^ (hashes >> np.uint64(33))) * _P2
    hashes = (hashes ^ (hashes >> np.uint64(29))) * _P3
    return hashes ^ (hashes >> np.uint64(32))


def _of_stripes(words: NDArray[np.uint8], at: Int64Array, stripes: Int64Array) -> UInt64Array:
    """What texts of 32 bytes and more begin with: uint64 [n], of their whole stripes."""
    zero, seed = np.zeros(len(at), np.uint64), np.uint64(SEED)
    lanes = [zero + seed + _P1 + _P2, zero + seed + _P2, zero + seed, zero + seed - _P1]
    for number in range(int(stripes.max())):
        some = np.flatnonzero(stripes > number)
        for lane, values in enumerate(lanes):
            values[some] = _round(values[some], _read(words, at[some] + (number * _STRIPE + lane * _WORD)))
    merged = _rotated(lanes[0], 1) + _rotated(lanes[1], 7) + _rotated(lanes[2], 12) + _rotated(lanes[3], 18)
    for values in lanes:
        merged = (merged ^ _round(np.uint64(0), values)) * _P1 + _P4
    return merged


def _round(lane: UInt64Array | np.uint64, word: UInt64Array) -> UInt64Array:
    return _rotated(lane + word * _P2, 31) * _P1


def _rotated(values: UInt64Array, bits: int) -> UInt64Array:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def _read(words: NDArray[np.uint8], at: Int64Array) -> UInt64Array:
    """The 8 bytes that begin at each place, as little-endian numbers."""
    return words[at].view("<u8").reshape(-1).astype(np.uint64, copy=False)
