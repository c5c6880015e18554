from __future__ import annotations

import pytest
import torch

from hvdspark.collectives import LocalCollective, run_threaded
from hvdspark.collectives.dtypes import bits, summable
from hvdspark.errors import ConfigurationError
from tests.unit.collectives.dtypes import DTYPES, check_dtype, same


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_added_up_and_broadcast(dtype: torch.dtype) -> None:
    check_dtype(LocalCollective(), dtype)
    run_threaded(3, lambda collective: check_dtype(collective, dtype))


def test_many_trues_are_still_true() -> None:
    wire, back = summable(torch.tensor([True, False]))
    assert same(back(wire * 256), torch.tensor([True, False]))


def test_bfloat16_is_rounded_once() -> None:
    parts = [torch.full((1,), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0)]
    totals = run_threaded(3, lambda collective: collective.allreduce_sum(parts[collective.rank], "t"))
    assert [total.item() for total in totals] == [258.0] * 3  # 256 + 1 alone rounds to 256


def test_what_has_no_sums_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="torch.bits8"):
        summable(torch.zeros(1, dtype=torch.uint8).view(torch.bits8))


def test_bits_are_the_same_memory() -> None:
    tensor = torch.zeros(2, dtype=torch.bool)
    bits(tensor)[1] = 1
    assert tensor.tolist() == [False, True]
