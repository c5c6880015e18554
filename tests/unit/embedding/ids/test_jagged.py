from __future__ import annotations

import pytest
import torch

from hvdspark.data.feed.batch import Ragged
from hvdspark.embedding.ids.jagged import device_of, jagged_of, name_features
from hvdspark.errors import ConfigurationError

VALUES, OFFSETS = torch.tensor([4, 5, 6]), torch.tensor([0, 0, 3])


@pytest.mark.parametrize(
    ("value", "pooling", "ids", "shape", "offsets"),
    [
        (torch.tensor([7, 8]), "none", [7, 8], (2,), None),
        (torch.tensor([7, 8], dtype=torch.int8), "sum", [7, 8], (2,), [0, 1, 2]),
        (torch.tensor([[7, 8], [9, 0]]), "none", [7, 8, 9, 0], (2, 2), None),
        (torch.tensor([[7, 8], [9, 0]]), "mean", [7, 8, 9, 0], (2,), [0, 2, 4]),
        ((VALUES, OFFSETS), "sum", [4, 5, 6], (2,), [0, 0, 3]),
        (Ragged(VALUES, OFFSETS), "mean", [4, 5, 6], (2,), [0, 0, 3]),
    ],
)
def test_forms(value: object, pooling: str, ids: list[int], shape: tuple[int, ...], offsets: list[int] | None) -> None:
    cells = jagged_of(value, pooling, "f")
    assert (cells.ids.dtype, cells.ids.tolist(), cells.shape) == (torch.int64, ids, shape)
    assert cells.offsets is None if offsets is None else cells.offsets is not None and cells.offsets.tolist() == offsets
    assert device_of(value) == torch.device("cpu")


def test_to_another_device() -> None:
    pooled, single = jagged_of((VALUES, OFFSETS), "sum", "f"), jagged_of(VALUES, "none", "f")
    for cells in (pooled, single):
        moved = cells.to(torch.device("meta"))
        assert {value.device.type for value in (moved.ids, moved.offsets) if value is not None} == {"meta"}
        assert (moved.shape, moved.pooling) == (cells.shape, cells.pooling)


def test_features_by_name_or_in_order() -> None:
    assert name_features({"b": 1, "a": 2, "c": 3}, ["a", "b"])["a"] == 2
    assert name_features([1, 2], ["a", "b"]) == {"a": 1, "b": 2}
    for inputs in ([1], {"a": 1}):
        with pytest.raises(ConfigurationError, match="a feature is missing: 'b'"):
            name_features(inputs, ["a", "b"])
