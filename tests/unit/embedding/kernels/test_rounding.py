from __future__ import annotations

import math

import pytest
import torch

from hvdspark.embedding.kernels.rounding import stochastic_round

both = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@both
def test_one_of_the_two_neighbours_with_the_right_mean(dtype: torch.dtype) -> None:
    gap = torch.finfo(dtype).eps
    values = (1 + torch.linspace(0, gap, 20_001)[1:-1]).reshape(-1, 1).expand(-1, 20)  # between two neighbours
    rounded = torch.stack([stochastic_round(values, dtype, step).float() for step in range(5)])
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + gap}
    assert (rounded - values).mean().item() == pytest.approx(0, abs=gap / 400)
    quarter = len(values) // 4
    up = (rounded[:, :quarter] > 1).float().mean().item()
    assert up == pytest.approx(0.125, abs=0.003)


@both
def test_what_needs_no_rounding_is_left_alone(dtype: torch.dtype) -> None:
    values = torch.randn(1000, 4).to(dtype)
    assert torch.equal(stochastic_round(values.float(), dtype, 3), values)
    special = torch.tensor([[0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max]])
    rounded = stochastic_round(special, dtype, 3).float()
    assert torch.equal(rounded.nan_to_num(7.5), special.nan_to_num(7.5))
    assert bool(rounded.isnan()[0, 4])


@both
def test_depends_on_step_and_column_only_besides_the_value(dtype: torch.dtype) -> None:
    values = torch.full((50, 300), 1.0003)
    first = stochastic_round(values, dtype, 1)
    assert torch.equal(first, first[:1].expand(50, 300))
    assert len(first[0].unique()) == 2
    assert not torch.equal(first, stochastic_round(values, dtype, 2))
    assert torch.equal(stochastic_round(values[7:9], dtype, 1), first[7:9])
