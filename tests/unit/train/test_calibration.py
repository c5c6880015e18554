from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.estimators.defaults import few_steps
from hvdspark.store import Store
from hvdspark.train.calibration import Calibration, calibrate, warnings_from
from hvdspark.train.loss import RowLoss
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import click_program, train_on_threads

# Predictions and labels of 10,000 rows, and what is said about them.
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "hardly trained": (0.418, np.arange(10_000) < 100, ["is above", "42 times as large"]),
    "a constant": (0.01, np.arange(10_000) < 100, []),
    "too small": (0.001, np.arange(10_000) < 100, ["is above", "0.1 times as large"]),
    "off by chance": (0.0004, np.arange(10_000) < 2, ["is above"]),
    "good": (np.where(np.arange(10_000) < 100, 0.5, 0.005), np.arange(10_000) < 100, []),
    "one class": (0.5, np.zeros(10_000), []),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["bce", "bce_with_logits"])
def test_what_is_said_about_predictions(name: str, loss: str) -> None:
    predicted, observed, words = CASES[name]
    probability = torch.tensor(np.broadcast_to(predicted, 10_000).copy()).double()
    label = torch.tensor(np.asarray(observed, dtype=np.float32))
    shown = Calibration(RowLoss(loss, ["y"], (), "cpu"), 1)
    output = torch.logit(probability) if loss == "bce_with_logits" else probability
    for part in (slice(0, 6000), slice(6000, None)):
        shown.show([output[part, None].float()], [label[part]], None)
    found = warnings_from(shown.sums)
    assert len(found) == len(words)
    for text, word in zip(found, words, strict=True):
        assert word in text


def test_rows_weigh_what_they_weigh() -> None:
    shown = Calibration(RowLoss("bce", ["y"], (), "cpu"), 1)
    shown.show([torch.tensor([0.5, 0.25])], [torch.tensor([1.0, 0.0])], torch.tensor([3.0, 1.0]))
    assert shown.sums[[0, 1, 3]].tolist() == [1.75, 3.0, 4.0]


@pytest.mark.parametrize(("loss", "labels"), [("mse", ["y"]), ("cross_entropy", ["y"]), ("bce", ["y", "z"])])
def test_other_losses_and_several_labels_have_no_calibration(loss: str, labels: list[str]) -> None:
    shown = Calibration(RowLoss(loss, labels, (), "cpu"), len(labels))
    shown.show([torch.rand(4, 2)] * len(labels), [torch.ones(4)] * len(labels), None)
    assert warnings_from(shown.sums) == []


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("rate", [0.003, 0.4])
def test_a_bias_is_moved_to_the_observed_rate(size: int, rate: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logit = torch.randn(9000, generator=generator) * 2 + 3
    label = (torch.rand(9000, generator=generator) < rate).float()
    weight = torch.rand(9000, generator=generator)

    def on_rank(collective: ThreadedCollective) -> float:
        bias = nn.Parameter(torch.zeros(1))
        own = slice(collective.rank, None, size)
        calibrate(bias, [(logit[own], label[own], weight[own])], collective)
        return bias.item()

    biases = run_threaded(size, on_rank, timeout_s=20)
    assert len(set(biases)) == 1
    predicted = (torch.sigmoid(logit.double() + biases[0]) * weight).sum()
    assert predicted.item() == pytest.approx((label * weight).sum().item(), rel=1e-4)


@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_a_fit_says_that_its_model_is_not_trained(validated: bool, size: int, tmp_path: Path) -> None:
    columns = click_columns(2000)
    columns["label"] = (np.arange(2000) % 50 == 0).astype(np.float32)  # 2 %, where the module begins at about a half
    store = Store(str(tmp_path))
    data = write_dataset(store, columns, columns if validated else None)
    for epochs, rate, words in ((1, 1e-3, ["is above", "times as large"]), (6, 0.05, [])):
        spec = train_spec(store, data, batch_size=200, epochs=epochs, learning_rate=rate, monitor="train_loss")
        _, results = train_on_threads(spec, click_program, size)
        found = [text for text in results[0].warnings if "large" in text or "above" in text]
        assert len(found) == len(words), found
        assert results[-1].warnings == results[0].warnings


def test_few_steps_are_said() -> None:
    assert few_steps(100) == []
    assert "for 4 optimizer steps" in few_steps(4)[0]
