"""What a fit says of modules that will not be saved as what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hvdspark.data.feed.sample import first_rows
from hvdspark.store import Store
from hvdspark.train import saving
from hvdspark.train.pickling import skeleton
from hvdspark.train.saving import state_besides_weights, warnings_about_lost_state, warnings_about_saving
from tests.unit.train.datasets import train_spec, write_dataset
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


def test_a_module_is_rebuilt_and_called_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    spec = train_spec(store, write_dataset(store, {"x": x, "label": x[:, 0]}), features=("x",))
    batch = first_rows(store, spec.dataset, ["x"], 4)
    module = Scaled(torch.tensor(3.0))
    assert warnings_about_saving(spec, module, skeleton(module), batch) == []
    refused = Scaled(lambda x: x)
    (warning,) = warnings_about_saving(spec, refused, skeleton(refused), batch)
    assert "save will refuse it: it has no import path" in warning
    for scale, found in ((1.0, "predicts something else"), ("3", "the rebuilt module fails: TypeError")):
        monkeypatch.setattr(saving, "rebuild_all", lambda *_, scale=scale: {"model": Scaled(scale)})
        (warning,) = warnings_about_saving(spec, module, skeleton(module), batch)
        assert found in warning
