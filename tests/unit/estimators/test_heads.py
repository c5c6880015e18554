"""What the last layer of a module must return, and the loss that suits it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.errors import ConfigurationError, DataError
from hvdspark.estimators.heads import (
    LabelClasses,
    check_classes,
    check_loss_of_width,
    check_regression,
    class_loss,
    count_classes,
)
from hvdspark.specs import ColumnSpec

STRING_INDEXER = {"ml_attr": {"type": "nominal", "name": "label", "vals": ["a", "b", "c", "d"]}}
BUCKETS = {"ml_attr": {"type": "nominal", "num_vals": 4}}


def label(low: float | None = 0.0, high: float | None = 2.0) -> ColumnSpec:
    return ColumnSpec("y", "int64", "scalar", minimum=low, maximum=high)


@pytest.mark.parametrize(
    ("column", "metadata", "given", "count"),
    [
        (label(), {}, None, 3),
        (label(high=0.0), {}, None, 2),
        (label(high=0.25), {}, None, 2),
        (label(high=9.0), {}, 12, 12),
        (label(), STRING_INDEXER, None, 4),
        (label(), BUCKETS, None, 4),
        (label(), STRING_INDEXER, 5, 5),
        (label(), {"comment": "none of Spark ML's"}, None, 3),
        (label(None, None), {}, None, 2),
    ],
)
def test_classes_are_given_or_found(column: ColumnSpec, metadata: dict[str, Any], given: int, count: int) -> None:
    assert count_classes(column, metadata, given).count == count


def test_labels_that_count_from_1_are_told_so() -> None:
    classes = count_classes(label(low=1.0), {})
    with pytest.raises(ConfigurationError, match=r"3 classes, says the largest label .*, 2.*Or subtract 1 from the la"):
        check_classes(nn.Linear(3, 2), [torch.zeros(4, 2)], classes)


@pytest.mark.parametrize(
    ("column", "metadata", "given", "message"),
    [
        (label(low=-1.0, high=1.0), {}, None, r"count from 0: the smallest is -1 \(in column 'y'\).*cast\('int'\)"),
        (label(high=508.3), {}, None, r"whole numbers.*the largest is no number of a class.*TorchRegressor"),
        (label(high=10.0), {}, 10, r"0 to 9, says numClasses: the largest is 10.*subtract 1"),
        (label(high=4.0), STRING_INDEXER, None, r"0 to 3, says the metadata of column 'y': the largest is 4"),
    ],
)
def test_labels_that_are_no_classes_say_so(
    column: ColumnSpec, metadata: dict[str, Any], given: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        count_classes(column, metadata, given)


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, width))


@pytest.mark.parametrize(
    ("module", "classes", "width"),
    [
        (net(1), LabelClasses(2, "x"), 1),
        (nn.Sequential(net(1), nn.Flatten(0)), LabelClasses(2, "x"), 1),
        (net(2), LabelClasses(2, "x", exact=True), 2),
        (net(3), LabelClasses(3, "x", exact=True), 3),
        (net(9), LabelClasses(3, "the largest label"), 9),
    ],
)
def test_what_a_classifier_may_return(module: nn.Module, classes: LabelClasses, width: int) -> None:
    assert check_classes(module, (module(torch.ones(4, 3)),), classes) == width


@pytest.mark.parametrize(
    ("module", "classes", "message"),
    [
        (
            net(1),
            LabelClasses(10, "the largest label in column 'y', 9"),
            r"one number for each row, and there are 10 classes, says the largest label in column 'y', 9: shape "
            r"\[rows, 1\].*let it return 10: nn.Linear\(8, 10\) instead of nn.Linear\(8, 1\), as layer '2'; .*quantity",
        ),
        (net(3), LabelClasses(10, "x"), r"3 numbers.*10 classes.*nn.Linear\(8, 10\)"),
        (net(12), LabelClasses(10, "numClasses", exact=True), r"12 numbers.*nn.Linear\(8, 10\) instead"),
        (net(3), LabelClasses(2, "numClasses", exact=True), r"let it return 1 or 2: nn.Linear\(8, 2\)"),
        (nn.Sequential(net(1), nn.Flatten(0)), LabelClasses(3, "x"), r"shape \[rows\]"),
    ],
)
def test_a_last_layer_of_the_wrong_width_is_told_what_to_be(
    module: nn.Module, classes: LabelClasses, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_classes(module, (module(torch.ones(4, 3)),), classes)


@pytest.mark.parametrize("outputs", [(torch.ones(4, 2, 2),), (torch.ones(4), torch.ones(4)), (torch.ones(4, 0),)])
def test_what_is_not_one_tensor_of_numbers_is_refused(outputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(ConfigurationError, match="must return one tensor.*TorchEstimator"):
        check_classes(nn.Identity(), outputs, LabelClasses(2, "x"))
    with pytest.raises(ConfigurationError, match="must return one number.*TorchEstimator"):
        check_regression(nn.Identity(), outputs)


def test_the_loss_suits_the_module() -> None:
    row = torch.ones(4, 3)
    assert class_loss(net(3)(row), 3) == "cross_entropy"
    assert class_loss(net(2)(row), 2) == "cross_entropy"
    assert class_loss(net(1)(row), 1) == "bce_with_logits"
    assert class_loss(nn.Sequential(net(1), nn.Sigmoid(), nn.Flatten(0))(row), 1) == "bce"


@pytest.mark.parametrize(
    ("loss", "width", "message"),
    [
        ("bce_with_logits", 3, r"takes one number.*returns 3 numbers.*leave loss unset.*nn.Linear\(8, 1\)"),
        ("cross_entropy", 1, r"takes one number for each class.*returns one number.*nn.Linear\(8, 2\)"),
    ],
)
def test_a_loss_for_another_width_is_refused(loss: str, width: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_loss_of_width(net(width), loss, width)
    for fits in (("bce", 1), ("nll", 2), ("cross_entropy", 7), ("", 3)):
        check_loss_of_width(net(fits[1]), *fits)


def test_a_regressor_returns_one_number() -> None:
    row = torch.ones(4, 3)
    check_regression(net(1), (net(1)(row),))
    check_regression(net(1), (net(1)(row)[:, 0],))
    with pytest.raises(ConfigurationError, match=r"shape \[rows, 4\].*return 1: nn.Linear\(8, 1\).*TorchClassifier"):
        check_regression(net(4), (net(4)(row),))
    with pytest.raises(ConfigurationError, match=r"return 1: nn.LazyLinear\(1\) instead of nn.LazyLinear\(4\);"):
        check_regression(nn.LazyLinear(4), (net(4)(row),))
