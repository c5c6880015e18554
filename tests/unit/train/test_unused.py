"""Parameters that are not reached, and rows that do not count, against plain torch."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdspark.store import Store
from hvdspark.train.program import Program
from tests.unit.train.datasets import train_spec, write_dataset
from tests.unit.train.toys import largest_difference, train_on_threads, weights_of

ROWS, BATCH = 48, 8
OPTIMIZERS = {
    "momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": functools.partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5),
}


class Branches(nn.Module):
    """`rare` is reached only by batches with a high row, `never` by none; the gradient of `zero` is always 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.always, self.rare, self.never = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)
        self.zero, self.frozen = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        output = self.always(x) + self.frozen(x) + 0.0 * self.zero(x)
        high = x[:, :1] > 1.0
        return output + high * self.rare(x) if bool(high.any()) else output


def columns() -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(2)
    x = drawn.standard_normal((ROWS, 3)).astype(np.float32).clip(-0.9, 0.9)
    x[[5, 17], 0] = 2.0  # two of six batches reach `rare`
    return {"x": x, "label": drawn.standard_normal(ROWS).astype(np.float32)}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_that_no_row_reached_stays_as_it_is(store_uri: str, name: str, size: int) -> None:
    store, data = Store(store_uri), columns()
    spec = train_spec(store, write_dataset(store, data), features=("x",), batch_size=BATCH, epochs=2)
    programs, _ = train_on_threads(spec, lambda: Program(Branches(), "mse", OPTIMIZERS[name]), size)

    module = Branches()
    optimizer = OPTIMIZERS[name](parameter for parameter in module.parameters() if parameter.requires_grad)
    for start in [*range(0, ROWS, BATCH)] * 2:
        optimizer.zero_grad()
        part = slice(start, start + BATCH)
        F.mse_loss(module(torch.tensor(data["x"][part]))[:, 0], torch.tensor(data["label"][part])).backward()
        optimizer.step()
    for program in programs:
        assert largest_difference(weights_of(program), dict(module.state_dict())) < 1e-5


@pytest.mark.parametrize("size", [1, 3])
def test_an_infinite_loss_of_a_row_without_weight_does_not_count(store_uri: str, size: int) -> None:
    store, odd = Store(store_uri), columns()
    odd["weight"] = np.ones(ROWS, np.float32)
    odd["weight"][[0, 9, 31, *range(16, 24)]] = 0.0  # of one batch all
    plain = {name: values.copy() for name, values in odd.items()}
    odd["label"][[0, 9, 17, 31]] = 3e38  # squared: infinite
    found = []
    for path, values in (("odd", odd), ("plain", plain)):
        dataset = write_dataset(store, values, values, path=path)
        spec = train_spec(store, dataset, run_id=path, features=("x",), batch_size=BATCH, metrics=("mse",))
        programs, results = train_on_threads(spec, lambda: Program(Branches(), "mse", "sgd"), size)
        found.append((weights_of(programs[0]), results[0].history[0]))
    assert largest_difference(found[0][0], found[1][0]) == 0.0
    for key in ("train_loss", "val_loss", "val_mse"):
        assert found[0][1][key] == found[1][1][key]
        assert np.isfinite(found[0][1][key])
