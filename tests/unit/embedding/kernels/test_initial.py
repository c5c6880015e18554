from __future__ import annotations

import numpy as np
import pytest

from hvdspark.embedding.kernels import initial

IDS = np.concatenate([np.arange(3000), [2**62, 2**63 - 1, -1]])


@pytest.mark.parametrize("scale", [0.01, 3.0, 1e-20])
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 17, 64])
@pytest.mark.parametrize("count", [0, 1, len(IDS)])
def test_compiled_is_reference(count: int, columns: int, scale: float) -> None:
    expected = np.zeros((count, columns + 1), dtype=np.float32)  # the last column is another's
    found = expected.copy()
    table_hash = np.uint64(2**64 - 12345)
    initial.uniform_reference(IDS[:count], table_hash, scale, expected[:, :columns])
    initial.uniform_compiled(IDS[:count], table_hash, scale, found[:, :columns])
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_nothing_outside_is_written() -> None:
    with pytest.raises(IndexError):
        initial.uniform_compiled(IDS, np.uint64(1), 1.0, np.zeros((2, 4), dtype=np.float32))
