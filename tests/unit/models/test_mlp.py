from __future__ import annotations

import pytest
import torch
from torch import nn

from hvdspark.errors import ConfigurationError
from hvdspark.models.mlp import hidden_layers, linear, mlp


def test_layers() -> None:
    kinds = [type(layer) for layer in mlp(5, [4, 3], dropout=0.1)]
    assert kinds == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in mlp(5, [4])] == [nn.Linear, nn.ReLU, nn.Linear]
    assert mlp(5, [])(torch.zeros(2, 5)).shape == (2, 1)
    assert len(hidden_layers(5, [])) == 0


def test_weights_begin_as_in_dlrm_and_biases_at_zero() -> None:
    torch.manual_seed(0)
    layer = linear(300, 200)
    # the estimate of a standard deviation from 60,000 values is off by 0.3 %; 2 % is 7 of those
    assert layer.weight.std().item() == pytest.approx((2 / 500) ** 0.5, rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize(("hidden", "dropout"), [([0], 0.0), ([2.5], 0.0), ([4], 1.0), ([4], -0.1)])
def test_out_of_range(hidden: list[int], dropout: float) -> None:
    with pytest.raises(ConfigurationError, match=r"out of range.*hidden layers"):
        mlp(5, hidden, dropout)
