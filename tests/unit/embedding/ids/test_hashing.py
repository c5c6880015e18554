from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdspark.embedding.ids.hashing import BUCKET_BITS, BUCKETS, bucket_range, owner_of, salt_of
from hvdspark.embedding.kernels.mixing import mix
from hvdspark.embedding.kernels.placement import hashed_buckets


def test_mix_is_the_published_sequence() -> None:
    # The first outputs of the reference generator from seed 1234567: state i is seed + i * golden.
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + step * golden) % 2**64 for step in range(5)]
    assert mix(np.array(states, dtype=np.uint64)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 4096, 2**40])
def test_buckets_are_balanced_whatever_the_pattern_of_ids(stride: int) -> None:
    keys = np.arange(1 << 16) * stride
    counts = np.bincount(hashed_buckets(keys, np.uint64(salt_of("t")), BUCKET_BITS), minlength=BUCKETS)
    assert len(counts) == BUCKETS
    chi2 = ((counts - 16.0) ** 2 / 16).sum().item()
    assert abs(chi2 - BUCKETS) < 6 * (2 * BUCKETS) ** 0.5


def test_salts_separate_tables() -> None:
    keys = np.arange(4096)
    left, right = (hashed_buckets(keys, np.uint64(salt_of(name)), BUCKET_BITS) for name in ("a", "b"))
    same = (left == right).sum().item()
    assert same < 20
    assert salt_of("a", "b") != salt_of("ab") != salt_of("a\x00b")


def test_salts_are_the_same_in_every_process() -> None:
    code = "from hvdspark.embedding.ids.hashing import salt_of; print(salt_of('table', 7))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert int(found.stdout) == salt_of("table", 7)


@given(st.integers(1, 5000))
def test_bucket_ranges_are_what_the_owner_says(world_size: int) -> None:
    owners = owner_of(torch.arange(BUCKETS), world_size)
    ranges = [bucket_range(rank, world_size) for rank in range(world_size)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == BUCKETS
    rebuilt = torch.cat([torch.full((stop - first,), rank) for rank, (first, stop) in enumerate(ranges)])
    assert torch.equal(owners, rebuilt)
    if world_size <= BUCKETS:
        sizes = {stop - first for first, stop in ranges}
        assert max(sizes) - min(sizes) <= 1
