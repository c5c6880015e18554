from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdspark.artifact.forward import OutputSpec, as_prediction, evaluation, forward, inputs_of
from hvdspark.collectives import LocalCollective
from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import ConfigurationError, DataError
from hvdspark.train.batch_norm import SharedStatistics


class Returns(nn.Module):
    """A module that returns whatever it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *inputs: Any) -> Any:
        return self.value


class Sums(nn.Module):
    def forward(self, dense: Tensor, ids: Ragged) -> Tensor:
        counts = (ids.offsets[1:] - ids.offsets[:-1]).float()
        return dense.sum(dim=1) + 10 * counts


def test_one_argument_for_each_feature_in_their_order() -> None:
    columns = {
        "ids": Ragged(torch.tensor([4, 5, 6]), torch.tensor([0, 2, 2, 3])),
        "label": torch.zeros(3),
        "dense": torch.ones(3, 2),
    }
    outputs = forward(Sums(), inputs_of(columns, ["dense", "ids"], "cpu"), 3)
    torch.testing.assert_close(outputs.tensors[0], torch.tensor([22.0, 2.0, 12.0]))


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (torch.zeros(3), (None,)),
        ((torch.zeros(3), torch.ones(3, 2)), (None, None)),
        ([torch.zeros(3)], (None,)),
        ({"click": torch.zeros(3, 1), "price": torch.ones(3)}, ("click", "price")),
    ],
)
def test_outputs_are_named_tensors(returned: Any, names: tuple[str | None, ...]) -> None:
    assert forward(Returns(returned), [], 3).names == names


def test_outputs_describe_themselves_without_rows_or_half_precision() -> None:
    returned = {"a": torch.zeros(3, 2, dtype=torch.bfloat16), "b": torch.zeros(3, dtype=torch.int64)}
    outputs = forward(Returns(returned), [], 3)
    assert outputs.describe() == (OutputSpec("a", (2,), "float32"), OutputSpec("b", (), "int64"))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.tensor(1.0), r"each of the 3 input rows: shape \(\)"),
        (torch.zeros(2, 3), r"each of the 3 input rows: shape \(2, 3\) \(in output 0 of Returns\)"),
        ((torch.zeros(3), torch.zeros(1)), "in output 1 of Returns"),
        ("text", "must return a tensor.*'str'"),
        (None, "'NoneType'"),
        ((), "returned nothing"),
    ],
)
def test_anything_else_is_refused(returned: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        forward(Returns(returned), [], 3)


IDS = Ragged(torch.tensor([4, 5, 6]), torch.tensor([0, 2, 2, 3]))


class Calls(nn.Module):
    """A module that is the function it is given."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)


@pytest.mark.parametrize(
    "function",
    [
        lambda dense, ids: ids.float(),
        lambda dense, ids: dense + ids,
        lambda dense, ids: ids[:, 0],
        lambda dense, ids: torch.cat([dense, ids], dim=1),
        lambda dense, ids: F.linear(ids, dense),
        lambda dense, ids: torch.as_tensor(ids),
    ],
)
def test_a_module_that_takes_arrays_of_different_lengths_for_a_tensor_is_told(
    function: Callable[..., Tensor],
) -> None:
    with pytest.raises(ConfigurationError, match=r"different lengths.*\['ids'\].*Ragged\(values, offsets\)") as caught:
        forward(Calls(function), [torch.ones(3, 2), IDS], 3, ["dense", "ids"])
    assert str(caught.value.__cause__) in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"\['argument 1'\]"):
        forward(Calls(function), [torch.ones(3, 2), IDS], 3)


@pytest.mark.parametrize(
    ("error", "inputs"),
    [
        (TypeError("mine"), [torch.ones(3)]),
        (MemoryError("CUDA out of memory"), [IDS]),
        (DataError("mine"), [IDS]),
    ],
)
def test_other_errors_of_the_module_are_left_as_they_are(error: Exception, inputs: list[Any]) -> None:
    def fail(_: Any) -> Tensor:
        raise error

    with pytest.raises(type(error)) as caught:
        forward(Calls(fail), inputs, 3, ["x"])
    assert caught.value is error


def test_a_column_of_one_is_a_plain_column() -> None:
    assert as_prediction(torch.zeros(3, 1)).shape == (3,)
    assert as_prediction(torch.zeros(3, 2)).shape == (3, 2)
    assert as_prediction(torch.zeros(1, 1, 4)).shape == (1, 1, 4)


def test_one_row_is_normalised_by_the_running_statistics() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    with pytest.raises(ValueError, match="more than 1 value"):
        module(torch.ones(1, 2))
    with SharedStatistics(module, LocalCollective()).from_all_ranks():
        module(torch.ones(1, 2))
    assert [layer.training for layer in module] == [True, False]


def test_after_evaluation_each_layer_is_in_its_own_mode() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout().eval())
    with evaluation(module):
        assert [layer.training for layer in module] == [False, False]
    assert [layer.training for layer in module] == [True, False]
