"""What every collective must do alike with every dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from hvdspark.collectives import Collective

# The next dtype joins here.
DTYPES = tuple(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"),
        *("complex64", "complex128"),
    )
    if hasattr(torch, name)
)


def of_rank(rank: int, dtype: torch.dtype) -> Tensor:
    """[2, 2]; all that is added up here is exact in every dtype."""
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0]]) * (rank + 1)
    return (values * (1 + 1j)).to(dtype) if dtype.is_complex else values.to(dtype)


def check_dtype(collective: Collective, dtype: torch.dtype) -> None:
    """Collective. Raises AssertionError where a sum or broadcast of this dtype is not what torch would say."""
    rank, size = collective.rank, collective.size
    mine = of_rank(rank, dtype)
    expected = of_rank(sum(range(1, size + 1)) - 1, dtype)
    for shape in ((2, 2), (4,), (1, 4)):
        total = collective.allreduce_sum(mine.reshape(shape), f"sum {dtype}")
        assert total.dtype == dtype
        assert same(total, expected.reshape(shape)), (dtype, total)
    assert same(mine, of_rank(rank, dtype))
    root = size - 1
    assert same(collective.broadcast(mine, root, f"broadcast {dtype}"), of_rank(root, dtype))
    scalar = of_rank(rank, dtype)[0, 0].clone()
    collective.broadcast_parameters({f"scalar {dtype}": scalar, f"whole {dtype}": mine}, root)
    assert same(scalar, of_rank(root, dtype)[0, 0])
    assert same(mine, of_rank(root, dtype))


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; torch compares no float8."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )
