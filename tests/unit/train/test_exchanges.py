"""How often ranks wait for each other in a step: each exchange costs about a millisecond, however small it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.store import Store
from hvdspark.train.loop import train
from hvdspark.train.program import Program
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import ClickNet

STEPS = 12  # no other exchange is made as often
CLASS_WEIGHTS = torch.tensor([1.0, 2.0])


class TwoClasses(ClickNet):
    """dense [rows, 3] and id [rows] -> a number for each of two classes [rows, 2]."""

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        logit = super().forward(dense, id)
        return torch.cat([-logit, logit], dim=1)


class TwoNorms(nn.Module):
    """Two layers that normalise by batch."""

    def __init__(self) -> None:
        super().__init__()
        normalised = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.layers = nn.Sequential(*normalised, nn.ReLU(), nn.Linear(4, 1))

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        return self.layers(dense)


# (module, loss, changes of the spec) -> exchanges of a step of the optimizer beside that of the gradients
CASES: list[Any] = [
    (ClickNet, "bce_with_logits", {}, {}),
    (ClickNet, "bce_with_logits", {"gradient_clip_norm": 1.0}, {}),
    (ClickNet, "bce_with_logits", {"accumulation_steps": 4}, {}),
    (ClickNet, "bce_with_logits", {"weight": "weight"}, {"train/batch_weight": 1}),
    (ClickNet, "bce_with_logits", {"weight": "weight", "accumulation_steps": 4}, {"train/batch_weight": 4}),
    (TwoClasses, nn.CrossEntropyLoss(), {}, {}),
    (TwoClasses, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), {}, {"train/divisors": 1}),
    (TwoClasses, nn.CrossEntropyLoss(ignore_index=1), {}, {"train/divisors": 1}),
    (
        TwoNorms,
        "bce_with_logits",
        {},
        {f"batch_norm/{layer}{way}": 1 for layer in (0, 1) for way in ("", "/backward")},
    ),
]


@pytest.mark.parametrize(("module", "loss", "changes", "expected"), CASES)
def test_a_step_exchanges_no_more_than_it_must(
    store_uri: str, module: type[nn.Module], loss: Any, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    store = Store(store_uri)
    dataset = write_dataset(store, click_columns(16 * STEPS, weighted=True))
    known = tuple(replace(column, minimum=0.0) if column.name == "label" else column for column in dataset.columns)
    spec = train_spec(store, replace(dataset, columns=known), **{"weight": None, **changes})
    modules = [module() for _ in range(2)]

    def on_rank(collective: ThreadedCollective) -> Counter[str]:
        train(spec, Program(modules[collective.rank], loss, "adam"), collective, "cpu", lambda event: None)
        return collective.calls

    steps = STEPS // changes.get("accumulation_steps", 1)
    for calls in run_threaded(2, on_rank):
        often = {name: count for name, count in calls.items() if count >= steps and not name.startswith("gradients/")}
        assert often == {name: count * steps for name, count in expected.items()}
