from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hvdspark.errors import ConfigurationError
from hvdspark.train.metrics import Metric, make_metric, metric_names


def exact_auc(score: Tensor, label: Tensor, weight: Tensor) -> float:
    """All pairs, ties count half."""
    positive, negative = label > 0.5, label <= 0.5
    higher = (score[positive, None] > score[None, negative]).double()
    tied = (score[positive, None] == score[None, negative]).double()
    pairs = weight[positive, None].double() * weight[None, negative].double()
    return float(((higher + 0.5 * tied) * pairs).sum() / pairs.sum())


def over_ranks(make: list[Metric], parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, str | None]:
    for metric, part in zip(make, parts, strict=True):
        metric.update(*part)
    return make[0].value(sum(metric.sums for metric in make))


def clicks(rows: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    score = spread * torch.randn(rows, generator=generator)
    label = (score / spread + 2 * torch.randn(rows, generator=generator) > 1).float()
    return score, label, 3 * torch.rand(rows, generator=generator)


@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_is_exact_to_its_bins(spread: float, weighted: bool) -> None:
    score, label, weight = clicks(3000, spread)
    weight = weight if weighted else torch.ones(3000)
    value, warning = over_ranks([make_metric("auc", torch.sigmoid, True)], [(score, label, weight)])
    assert value == pytest.approx(exact_auc(score, label, weight), abs=2e-4)
    assert warning is None


def test_auc_of_probabilities_keeps_the_order_of_small_ones() -> None:
    score, label, weight = clicks(3000, 1.0)
    probability = torch.sigmoid(score.double() - 9).float()  # around one click in 8000
    value, _ = over_ranks([make_metric("auc", lambda output: output, False)], [(probability, label, weight)])
    assert value == pytest.approx(exact_auc(probability, label, weight), abs=2e-4)


def test_auc_counts_ties_as_half_exactly() -> None:
    score = torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0, -5.0])
    label = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    value, _ = over_ranks([make_metric("auc", None, False)], [(score, label, torch.ones(6))])
    assert value == exact_auc(score, label, torch.ones(6))


def test_auc_takes_scores_of_any_size_and_certain_probabilities() -> None:
    label, weight = torch.tensor([0.0, 1.0]), torch.ones(2)
    for score in (torch.tensor([-3e38, 3e38]), torch.tensor([-math.inf, math.inf])):
        assert over_ranks([make_metric("auc", None, False)], [(score, label, weight)])[0] == 1.0
    certain = torch.tensor([0.0, 1.0])
    assert over_ranks([make_metric("auc", lambda output: output, False)], [(certain, label, weight)])[0] == 1.0


def test_auc_of_one_class_is_nan_with_a_warning() -> None:
    value, warning = over_ranks([make_metric("auc", None, False)], [(torch.randn(4), torch.ones(4), torch.ones(4))])
    assert math.isnan(value)
    assert warning is not None
    assert "one class" in warning


def test_auc_warns_where_its_bins_are_too_wide() -> None:
    score, label, weight = clicks(3000, 1e-5)
    value, warning = over_ranks([make_metric("auc", None, False)], [(score, label, weight)])
    assert warning is not None
    assert "may be off by up to" in warning
    promised = float(warning.split("up to ")[1].split(":")[0])
    assert abs(value - exact_auc(score, label, weight)) <= promised * 1.05


def test_metrics_of_parts_add_up_to_the_whole() -> None:
    score, label, weight = clicks(1001, 2.0)
    for name in ("auc", "logloss", "accuracy", "mse", "mae"):
        whole, _ = over_ranks([make_metric(name, torch.sigmoid, True)], [(score, label, weight)])
        cuts = [(0, 400), (400, 400), (400, 1001)]  # one rank has no rows
        parts = [(score[a:b], label[a:b], weight[a:b]) for a, b in cuts]
        assert over_ranks([make_metric(name, torch.sigmoid, True) for _ in cuts], parts)[0] == pytest.approx(whole)


def test_binary_metrics_are_weighted_means() -> None:
    probability = np.array([0.9, 0.2, 0.6])
    label, weight = np.array([1.0, 0.0, 0.0]), np.array([1.0, 2.0, 0.5])
    batch = (torch.tensor(probability).unsqueeze(1), torch.tensor(label), torch.tensor(weight))
    own = np.where(label == 1, probability, 1 - probability)
    for name, rows in (
        ("logloss", -np.log(own)),
        ("accuracy", np.array([1.0, 1.0, 0.0])),
        ("mse", (probability - label) ** 2),
        ("mae", np.abs(probability - label)),
    ):
        value, _ = over_ranks([make_metric(name, lambda output: output, False)], [batch])
        assert value == pytest.approx(np.average(rows, weights=weight)), name


def test_class_metrics() -> None:
    output = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 1.0, 0.5]])
    batch = (output, torch.tensor([0, 2, 2]), torch.ones(3))
    softmax = lambda output: torch.softmax(output, dim=1)  # noqa: E731
    accuracy, _ = over_ranks([make_metric("accuracy", softmax, False)], [batch])
    logloss, _ = over_ranks([make_metric("logloss", softmax, False)], [batch])
    assert accuracy == pytest.approx(2 / 3)
    assert logloss == pytest.approx(torch.nn.functional.cross_entropy(output, batch[1]).item())


def test_auc_of_two_classes_looks_at_the_second() -> None:
    score, label, weight = clicks(500, 1.0)
    output = torch.stack([torch.zeros(500), score], dim=1)
    value, _ = over_ranks([make_metric("auc", lambda x: torch.softmax(x, dim=1), False)], [(output, label, weight)])
    assert value == pytest.approx(exact_auc(score, label, weight), abs=2e-4)


def test_nan_in_the_rows_is_a_warning() -> None:
    batch = (torch.tensor([math.nan]), torch.tensor([1.0]), torch.ones(1))
    value, warning = over_ranks([make_metric("mse", None, False)], [batch])
    assert math.isnan(value)
    assert warning is not None
    assert "not finite" in warning


def test_an_impossible_prediction_is_a_finite_logloss() -> None:
    batch = (torch.tensor([0.0]), torch.tensor([1.0]), torch.ones(1))
    value, _ = over_ranks([make_metric("logloss", lambda output: output, False)], [batch])
    assert value == pytest.approx(-math.log(1e-15))


def test_no_weight_is_nan_with_a_warning() -> None:
    value, warning = make_metric("mse", None, False).value(torch.zeros(2, dtype=torch.float64))
    assert math.isnan(value)
    assert warning is not None


@pytest.mark.parametrize(("name", "words"), [("f1", "unknown metric: 'f1'"), ("logloss", "becomes a probability")])
def test_what_cannot_be_computed_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_metric(name, None, False)


@pytest.mark.parametrize("name", ["mse", "auc"])
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"output \(3, 2\), label \(3,\)"):
        make_metric(name, None, False).update(torch.zeros(3, 2), torch.zeros(3), torch.ones(3))


def test_keys_name_the_label_only_where_there_are_several() -> None:
    assert metric_names(["auc"], ["click"]) == [("val_auc", 0, "auc")]
    assert [key for key, _, _ in metric_names(["auc", "mse"], ["a", "b"])] == [
        "val_auc_a",
        "val_mse_a",
        "val_auc_b",
        "val_mse_b",
    ]
