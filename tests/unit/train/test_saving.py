"""What a fit says of modules that will not be saved as what was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.train.saving import state_besides_weights, warnings_about_lost_state
from tests.unit.train.ordinary import Buffers, Scaled, freeze


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.seen = nn.Linear(3, 2), nn.BatchNorm1d(2), 0
        self.register_buffer("mean", torch.zeros(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def count(module: Any) -> None:
    module.seen += 1


def move_mean(module: Any) -> None:
    module.mean += 1.0


def train(module: Any) -> None:
    with torch.no_grad():
        module.train()(torch.randn(4, 3))
        module.layer.weight += 1.0


@pytest.mark.parametrize(
    ("module", "change", "lost"),
    [
        (Counting(), count, "Counting.seen is 1 instead of 0"),
        (Counting(), move_mean, "values of 1 tensors"),
        (Counting(), train, None),
        (Counting(), freeze, None),
        (Buffers(), lambda module: module.kept.add_(1.0), None),
        (Scaled(lambda x: x), lambda module: setattr(module, "scale", 1.0), None),  # cannot be said
    ],
)
def test_what_training_changed_beside_weights_is_named(
    module: nn.Module, change: Callable[[Any], None], lost: str | None
) -> None:
    before = state_besides_weights(module)
    change(module)
    found = warnings_about_lost_state(before, module)
    assert len(found) == (lost is not None)
    assert all(lost in warning and "register_buffer" in warning for warning in found)
