"""Modules that return more while they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvdspark.artifact.forward import OutputSpec
from hvdspark.store import Store
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import ClickNet, click_program, train_on_threads


class TrainingHeads(ClickNet):
    """While it trains it returns a second output."""

    def forward(self, dense: Tensor, id: Tensor) -> Any:
        logit = super().forward(dense, id)
        return (logit, self.hidden.weight.sum() * 0.01 + logit) if self.training else logit


def of_all_heads(outputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(outputs, tuple)
    (label,) = labels
    return sum(  # type: ignore[return-value]
        F.binary_cross_entropy_with_logits(output[:, 0], label.reshape(-1), reduction="none") for output in outputs
    )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("validated", [False, True])
def test_heads_that_only_training_returns_are_no_outputs(store_uri: str, validated: bool, size: int) -> None:
    store, columns = Store(store_uri), click_columns(8)
    dataset = write_dataset(store, columns, click_columns(9) if validated else None)
    # One row in the last batch: some ranks see no rows of it at all.
    spec = train_spec(store, dataset, batch_size=7, epochs=2)
    programs, results = train_on_threads(spec, lambda: click_program(module=TrainingHeads(), loss=of_all_heads), size)
    assert results[0].outputs == (OutputSpec(None, (1,), "float32"),)
    if validated:
        columns = click_columns(9)
        logit = programs[0].module.eval()(torch.tensor(columns["dense"]), torch.tensor(columns["id"]))[:, 0]
        expected = F.binary_cross_entropy_with_logits(logit, torch.tensor(columns["label"])).item()
        best = results[0].history[results[0].best_epoch]
        assert best["val_loss"] == pytest.approx(expected, rel=1e-5)
