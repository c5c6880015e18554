from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdspark.embedding.ids.xxhash import SEED, decimal_digits, utf8, xxhash64


def one_by_one(data: bytes) -> int:
    """XXH64 as its specification has it, in Python's integers."""
    p1, p2, p3, p4, p5 = (
        *(0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63),
        0x27D4EB2F165667C5,
    )
    mask = (1 << 64) - 1

    def rotated(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (64 - bits))) & mask

    def mixed(lane: int, word: int) -> int:
        return rotated((lane + word * p2) & mask, 31) * p1 & mask

    def number(first: int, size: int) -> int:
        return int.from_bytes(data[first : first + size], "little")

    at, size = 0, len(data)
    found = SEED + p5
    if size >= 32:
        lanes = [SEED + p1 + p2, SEED + p2, SEED, SEED - p1]
        while at + 32 <= size:
            lanes = [mixed(lane, number(at + 8 * k, 8)) for k, lane in enumerate(lanes)]
            at += 32
        found = sum(rotated(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
        for lane in lanes:
            found = ((found ^ mixed(0, lane)) * p1 + p4) & mask
    found = (found + size) & mask
    while at + 8 <= size:
        found, at = (rotated(found ^ mixed(0, number(at, 8)), 27) * p1 + p4) & mask, at + 8
    if at + 4 <= size:
        found, at = (rotated(found ^ (number(at, 4) * p1 & mask), 23) * p2 + p3) & mask, at + 4
    while at < size:
        found, at = rotated(found ^ (data[at] * p5 & mask), 11) * p1 & mask, at + 1
    found = (found ^ (found >> 33)) * p2 & mask
    found = (found ^ (found >> 29)) * p3 & mask
    return found ^ (found >> 32)


@settings(max_examples=40)
@given(st.lists(st.text(max_size=80) | st.text("ab\0é東🛒", min_size=20, max_size=80), max_size=20))
def test_many_texts_hash_as_each_by_itself(texts: list[str]) -> None:
    encoded = [text.encode(errors="replace") for text in texts]
    data, offsets = utf8(texts)
    assert [data[first:stop].tobytes() for first, stop in itertools.pairwise(offsets)] == encoded
    assert xxhash64(data, offsets).tolist() == [one_by_one(text) for text in encoded]


@settings(max_examples=40)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1000, 1000), max_size=30))
def test_digits_are_those_of_str(values: list[int]) -> None:
    data, offsets = decimal_digits(np.array(values, dtype=np.int64))
    found = [data[first:stop].tobytes().decode() for first, stop in itertools.pairwise(offsets)]
    assert found == [str(value) for value in values]
