"""Rows of the history, and epochs that have none."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

from hvdspark.errors import DataError
from hvdspark.store import Store
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import click_program, train_on_threads


class TwoClasses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        return self.out(dense)


@pytest.mark.parametrize("size", [1, 2])
def test_an_epoch_of_which_no_row_has_a_weight_is_an_error(store_uri: str, size: int) -> None:
    columns = click_columns(20, weighted=True)
    columns["weight"] = np.zeros(20, np.float32)
    store = Store(store_uri)
    spec = train_spec(store, write_dataset(store, columns), batch_size=8)
    with pytest.raises(DataError, match=r"the weights of all training rows are 0.*\(in weight\)"):
        train_on_threads(spec, click_program, size)


@pytest.mark.parametrize("size", [1, 2])
def test_an_epoch_whose_labels_are_all_ignored_is_an_error(store_uri: str, size: int) -> None:
    columns = click_columns(20)
    columns["label"] = np.full(20, 7, np.int64)
    store = Store(store_uri)
    spec = train_spec(store, write_dataset(store, columns), batch_size=8)
    loss = nn.CrossEntropyLoss(ignore_index=7)
    with pytest.raises(DataError, match=r"the loss ignores the \w+ of all training rows.*\(in label\)"):
        train_on_threads(spec, lambda: click_program(module=TwoClasses(), loss=loss), size)
