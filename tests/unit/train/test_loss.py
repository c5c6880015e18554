from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdspark.errors import ConfigurationError, DataError
from hvdspark.train.loss import RowLoss

OUTPUT = torch.tensor([[0.3], [-1.2], [2.0]])
LABEL = torch.tensor([1.0, 0.0, 1.0])


def rows_of(loss: object, output: Tensor, label: Tensor, *, weighted: bool = True) -> Tensor:
    (part,) = RowLoss(loss, ["label"], (), "cpu")([output], [label], weighted=weighted)
    return part.numerator


@pytest.mark.parametrize(
    ("name", "output", "label", "expected"),
    [
        ("bce_with_logits", OUTPUT, LABEL, F.binary_cross_entropy_with_logits(OUTPUT[:, 0], LABEL, reduction="none")),
        ("bce", OUTPUT.sigmoid(), LABEL, F.binary_cross_entropy(OUTPUT[:, 0].sigmoid(), LABEL, reduction="none")),
        ("mse", OUTPUT, LABEL, (OUTPUT[:, 0] - LABEL) ** 2),
        ("l1", OUTPUT, LABEL, (OUTPUT[:, 0] - LABEL).abs()),
        ("huber", OUTPUT, LABEL, F.huber_loss(OUTPUT[:, 0], LABEL, reduction="none")),
        ("smooth_l1", OUTPUT, LABEL, F.smooth_l1_loss(OUTPUT[:, 0], LABEL, reduction="none")),
        ("poisson_nll", OUTPUT, LABEL, F.poisson_nll_loss(OUTPUT[:, 0], LABEL, reduction="none")),
    ],
)
def test_named_losses_are_torchs_own_for_each_row(name: str, output: Tensor, label: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(rows_of(name, output, label), expected)
    torch.testing.assert_close(rows_of(name, output[:, 0], label.unsqueeze(1)), expected)


@pytest.mark.parametrize("label", [torch.tensor([0, 2, 1]), torch.tensor([[0.0], [2.0], [1.0]])])
@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()])
def test_class_indices_become_int64(loss: object, label: Tensor) -> None:
    output = torch.randn(3, 3)
    expected = F.cross_entropy(output, torch.tensor([0, 2, 1]), reduction="none")
    torch.testing.assert_close(rows_of(loss, output, label), expected)


def test_soft_class_labels_stay_probabilities() -> None:
    output, label = torch.randn(3, 4), torch.softmax(torch.randn(3, 4), dim=1)
    torch.testing.assert_close(
        rows_of("cross_entropy", output, label), F.cross_entropy(output, label, reduction="none")
    )


def test_ignored_class_index_is_in_range() -> None:
    output = torch.randn(3, 3)
    rows = rows_of(nn.CrossEntropyLoss(ignore_index=7), output, torch.tensor([0, 7, 1]))
    assert rows[1] == 0


def test_a_loss_module_is_copied_not_changed() -> None:
    module = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
    rows = rows_of(module, OUTPUT, LABEL)
    expected = F.binary_cross_entropy_with_logits(OUTPUT[:, 0], LABEL, reduction="none", pos_weight=torch.tensor([3.0]))
    torch.testing.assert_close(rows, expected)
    assert module.reduction == "mean"


def test_several_losses_of_a_row_are_averaged() -> None:
    output, label = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(rows_of("mse", output, label), ((output - label) ** 2).mean(dim=1))


def test_a_callable_that_takes_reduction_gives_a_loss_for_each_row() -> None:
    def loss(output: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.mse_loss(output, target, reduction=reduction)

    torch.testing.assert_close(rows_of(loss, OUTPUT, LABEL), (OUTPUT[:, 0] - LABEL) ** 2)


def test_a_callable_never_meets_labels_that_would_broadcast() -> None:
    # [3, 1] - [3] would be [3, 3].
    torch.testing.assert_close(
        rows_of(lambda output, target: (output - target) ** 2, OUTPUT, LABEL), (OUTPUT[:, 0] - LABEL) ** 2
    )


def test_a_scalar_is_the_mean_over_its_rows_and_cannot_be_weighted() -> None:
    rows = rows_of(lambda output, target: ((output - target) ** 2).mean(), OUTPUT, LABEL, weighted=False)
    assert rows.shape == (3,)
    torch.testing.assert_close(rows.mean(), ((OUTPUT[:, 0] - LABEL) ** 2).mean())
    with pytest.raises(ConfigurationError, match="weights need a loss for each row"):
        rows_of(lambda output, target: (output - target).mean(), OUTPUT, LABEL, weighted=True)


def test_several_outputs_are_summed_with_their_weights() -> None:
    other = torch.randn(3)
    loss = RowLoss(["bce_with_logits", "mse"], ["click", "price"], (1.0, 0.5), "cpu")
    ((rows, _),) = loss((OUTPUT, other), (LABEL, LABEL), weighted=True)
    expected = F.binary_cross_entropy_with_logits(OUTPUT[:, 0], LABEL, reduction="none") + 0.5 * (other - LABEL) ** 2
    torch.testing.assert_close(rows, expected)
    assert loss.has_logits(0)
    assert not loss.has_logits(1)
    assert loss.probabilities(1) is None


def test_one_named_loss_serves_all_outputs() -> None:
    ((rows, _),) = RowLoss("mse", ["a", "b"], (), "cpu")((OUTPUT, OUTPUT), (LABEL, LABEL), weighted=True)
    torch.testing.assert_close(rows, 2 * (OUTPUT[:, 0] - LABEL) ** 2)


def test_one_callable_sees_all_outputs_and_labels() -> None:
    def loss(outputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        return (outputs[0] - labels[1]).abs()

    ((rows, _),) = RowLoss(loss, ["a", "b"], (), "cpu")((OUTPUT, OUTPUT), (LABEL, LABEL * 2), weighted=True)
    torch.testing.assert_close(rows, (OUTPUT[:, 0] - LABEL * 2).abs())


@pytest.mark.parametrize("weights", [(), (0.5,)])
def test_one_callable_sees_two_outputs_for_one_label(weights: tuple[float, ...]) -> None:
    def loss(outputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        mean, scale = outputs
        (label,) = labels
        return (mean.squeeze(1) - label).abs() * scale

    scale = torch.tensor([1.0, 2.0, 3.0])
    ((rows, _),) = RowLoss(loss, ["label"], weights, "cpu")((OUTPUT, scale), (LABEL,), weighted=True)
    torch.testing.assert_close(rows, (OUTPUT[:, 0] - LABEL).abs() * scale * (weights or (1.0,))[0])


@pytest.mark.parametrize("labels", [["label"], ["a", "b", "c"]])
@pytest.mark.parametrize("loss", [F.mse_loss, lambda output, label: output - label])
def test_a_callable_for_one_output_is_told_that_it_got_several(loss: object, labels: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=f"tuples .*2 outputs and {len(labels)} label") as caught:
        RowLoss(loss, labels, (), "cpu")((OUTPUT, OUTPUT), (LABEL,) * len(labels), weighted=False)
    assert isinstance(caught.value.__cause__, TypeError | AttributeError)


def test_nan_probabilities_are_a_nan_loss_not_a_torch_error() -> None:
    assert math.isnan(rows_of("bce", torch.tensor([0.2, math.nan]), torch.tensor([0.0, 1.0])).sum())


@pytest.mark.parametrize(
    ("loss", "output", "label", "error", "words"),
    [
        ("mse", torch.zeros(3, 2), torch.zeros(3), ConfigurationError, r"output \(3, 2\), label \(3,\) \(in label\)"),
        ("bce_with_logits", OUTPUT, torch.tensor([-1.0, 1.0, 1.0]), DataError, r"\[0, 1\]: -1.0 .in label."),
        (nn.BCELoss(), OUTPUT.sigmoid(), torch.tensor([0.0, 1.0, 2.0]), DataError, r"\[0, 1\]: 2.0"),
        ("cross_entropy", torch.zeros(3, 2), torch.tensor([0, 1, 2]), DataError, r"\[0, 1\]: 2"),
        (
            "cross_entropy",
            torch.zeros(3, 2),
            torch.tensor([0, 0.5, 1.5]),
            DataError,
            r"cross_entropy .* whole .*: a fraction ",
        ),
        (
            nn.NLLLoss(),
            torch.zeros(2, 2),
            torch.tensor([[1.0], [1.5]]),
            DataError,
            r"whole numbers: a fraction .in label.",
        ),
        ("nll", torch.zeros(1, 2), torch.tensor([math.nan]), DataError, r"whole numbers: nan"),
        ("cross_entropy", torch.zeros(3, 1), torch.tensor([0, 1, 0]), ConfigurationError, "one column for each class"),
        ("hinge", OUTPUT, LABEL, ConfigurationError, "unknown loss: 'hinge'"),
        (3, OUTPUT, LABEL, ConfigurationError, "'int'"),
        (lambda output, target: 3.0, OUTPUT, LABEL, ConfigurationError, "must return a tensor"),
        (lambda output, target: output[:2], OUTPUT, LABEL, ConfigurationError, "each of the 3 rows"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    loss: object, output: Tensor, label: Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        rows_of(loss, output, label)


@pytest.mark.parametrize(
    ("loss", "weights", "outputs", "words"),
    [
        (["mse"], (), 2, "one loss for each of the 2 labels"),
        ("mse", (1.0,), 2, "one weight for each of the 2 labels"),
        ("mse", (), 1, "one output for each of the 2 labels"),
        (lambda outputs, labels: outputs[0], (1.0, 2.0), 2, "weighs them itself"),
    ],
)
def test_outputs_labels_and_losses_must_match(
    loss: object, weights: tuple[float, ...], outputs: int, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RowLoss(loss, ["a", "b"], weights, "cpu")([LABEL] * outputs, [LABEL, LABEL], weighted=False)
