"""Normalisation by batch: any number of ranks is plain torch on the whole batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvdspark.data.feed.loader import Ragged
from hvdspark.errors import ConfigurationError, TrainingDivergedError
from hvdspark.store import Store
from hvdspark.train.check import check_program
from hvdspark.train.program import Program
from tests.unit.train.datasets import train_spec, write_dataset
from tests.unit.train.toys import largest_difference, train_on_threads, weights_of


class Normed(nn.Module):
    """x [rows, 3] -> [rows, 1], with layers that normalise in between."""

    def __init__(self, first: nn.Module, then: nn.Module | None = None, *, images: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.before, self.first = nn.Linear(3, 8), first
        self.hidden, self.then = nn.Linear(8, 8), then or nn.Identity()
        self.out, self.images = nn.Linear(8, 1), images

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(x)
        hidden = self.first(hidden.view(-1, 2, 2, 2)).flatten(1) if self.images else self.first(hidden)
        return self.out(torch.tanh(self.then(self.hidden(torch.tanh(hidden)))))


class Activated(nn.BatchNorm1d):
    """A layer with a forward of its own, as timm's are."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(
            F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, EPS)
        )


class AtTheInput(Normed):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.before(self.then(100.0 + x))))


class Repeated(Normed):
    """Layers that are passed twice, and activation checkpointing."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(self.first(self.before(x)))
        return self.out(checkpoint(lambda value: torch.tanh(self.then(value)), hidden, use_reentrant=False))


class Heads(Normed):
    """While it trains it returns a second head, which the loss leaves out."""

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        hidden = self.before(x)
        main = self.out(self.first(hidden))
        return (main, self.then(hidden)) if self.training else main


def of_first(outputs: Any, labels: Any) -> Tensor:
    return (outputs[0][:, 0] - labels[0]).square()


# Two rows that are nearly alike are divided by nearly nothing: plain float32 is then 1e-4 from plain float64.
EPS = 0.05
BN = functools.partial(nn.BatchNorm1d, eps=EPS)


def frozen() -> nn.Module:
    module = Normed(BN(8), BN(8))
    module.first.running_mean = torch.full((8,), 0.3)
    module.first.eval()
    return module


# The next module joins here.
MODULES: dict[str, Callable[[], nn.Module]] = {
    "1d": lambda: Normed(BN(8), BN(8)),
    "2d": lambda: Normed(nn.BatchNorm2d(2, eps=EPS), images=True),
    "SyncBatchNorm": lambda: Normed(nn.SyncBatchNorm(8, eps=EPS)),
    "no affine": lambda: Normed(BN(8, affine=False), BN(8)),
    "cumulative": lambda: Normed(BN(8, momentum=None)),
    "own forward": lambda: Normed(Activated(8, eps=EPS)),
    "at the input": lambda: AtTheInput(nn.Identity(), BN(3)),
    "repeated": lambda: Repeated(BN(8, eps=1.0), BN(8)),
    "frozen": frozen,
    "head of training": lambda: Heads(BN(8), BN(8)),
    "instances": lambda: Normed(nn.InstanceNorm2d(2, affine=True, track_running_stats=True), images=True),
}


def columns(rows: int) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(6)
    return {
        name: drawn.standard_normal(shape).astype(np.float32) for name, shape in (("x", (rows, 3)), ("label", rows))
    }


def trained(
    store: Store, make: Callable[[], nn.Module], data: dict[str, np.ndarray], size: int, batch: int, **changes: Any
) -> list[dict[str, Tensor]]:
    """Weights and buffers of each rank after two epochs."""
    dataset = write_dataset(store, data)
    spec = train_spec(store, dataset, features=("x",), batch_size=batch, epochs=2, run_id=f"r-{size}", **changes)
    loss = of_first if isinstance(make(), Heads) else "mse"
    programs, _ = train_on_threads(
        spec, lambda: Program(make(), loss, functools.partial(torch.optim.SGD, momentum=0.9)), size
    )
    return [weights_of(program) for program in programs]


def plain(make: Callable[[], nn.Module], data: dict[str, np.ndarray], batch: int) -> dict[str, Tensor]:
    module = make()
    was_frozen = [layer for layer in module.modules() if not layer.training]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    module.train()
    for layer in was_frozen:
        layer.eval()
    for start in [*range(0, len(data["x"]), batch)] * 2:
        optimizer.zero_grad()
        output = module(torch.tensor(data["x"][start : start + batch]))
        output = output[0] if isinstance(output, tuple) else output
        F.mse_loss(output[:, 0], torch.tensor(data["label"][start : start + batch])).backward()
        optimizer.step()
    return dict(module.state_dict())


# Rows, batchSize, ranks: some ranks have one row of a batch (all of them in the second), some have none.
SPLITS = [(26, 8, 1), (26, 8, 3), (6, 2, 2), (8, 2, 3), (26, 8, 5)]


@pytest.mark.parametrize(("rows", "batch", "size"), SPLITS)
@pytest.mark.parametrize("name", MODULES)
def test_any_split_of_rows_is_one_batch(store_uri: str, name: str, rows: int, batch: int, size: int) -> None:
    data = columns(rows)
    expected = plain(MODULES[name], data, batch)
    for found in trained(Store(store_uri), MODULES[name], data, size, batch):
        assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("size", [2, 3])
def test_a_last_batch_of_one_row_is_normalised_by_the_running_statistics(store_uri: str, size: int) -> None:
    data, store = columns(17), Store(store_uri)
    (expected,) = trained(store, MODULES["1d"], data, 1, 8)
    for found in trained(store, MODULES["1d"], data, size, 8):
        assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"accumulation_steps": 3}], ids=str)
def test_accumulation_and_row_weights(store_uri: str, changes: dict[str, Any]) -> None:
    data, store = columns(26), Store(store_uri)
    data["weight"] = (np.arange(26) % 5 / 2).astype(np.float32)
    data["weight"][8:11] = 0.0  # all rows of one rank, and not all of a batch
    data["label"][9] = 3e38  # squared: infinite
    (expected,) = trained(store, MODULES["1d"], data, 1, 8, **changes)
    for found in trained(store, MODULES["1d"], data, 3, 8, **changes):
        assert largest_difference(found, expected) < 1e-5


def test_layers_that_were_frozen_before_stay_frozen_and_a_module_in_evaluation_is_trained(store_uri: str) -> None:
    data, store = columns(26), Store(store_uri)
    for found in trained(store, frozen, data, 2, 8):
        assert torch.equal(found["first.running_mean"], torch.full((8,), 0.3))
    in_evaluation: Callable[[], nn.Module] = lambda: MODULES["1d"]().eval()  # noqa: E731
    for found in trained(store, in_evaluation, data, 2, 8):
        assert found["first.num_batches_tracked"] == 8


def test_one_ranks_nan_is_named_by_its_column(store_uri: str) -> None:
    data, store = columns(16), Store(store_uri)
    data["x"][15, 1] = np.nan
    spec = train_spec(store, write_dataset(store, data), features=("x",), batch_size=16, accumulation_steps=2)
    with pytest.raises(TrainingDivergedError, match="rank 2, epoch 0, step 0.*in the columns x"):
        train_on_threads(spec, lambda: Program(MODULES["1d"](), "mse", "sgd"), 3)


class OfLists(nn.Module):
    """Ragged ids -> [rows, 1], normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.norm, self.out = nn.EmbeddingBag(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, ids: Ragged) -> Tensor:
        return self.out(self.norm(self.bag(ids.values, ids.offsets[:-1])))


def test_a_rank_without_rows_of_lists_takes_part(store_uri: str) -> None:
    store = Store(store_uri)
    data = {"ids": [[0, 1], [2], [3, 4, 0]] * 2, "label": columns(6)["label"]}
    spec = train_spec(store, write_dataset(store, data), features=("ids",), batch_size=2)
    programs, _ = train_on_threads(spec, lambda: Program(OfLists(), "mse", "sgd"), 3)
    assert largest_difference(weights_of(programs[0]), weights_of(programs[2])) == 0.0


class HorovodsOwn(nn.BatchNorm1d):
    __module__ = "horovod.torch.sync_batch_norm"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (HorovodsOwn(8), "Horovod's SyncBatchNorm.*'first'"),
        (nn.BatchNorm1d(8, track_running_stats=False), "rows beside it: 'first'"),
    ],
)
def test_layers_that_cannot_be_scored_are_refused_on_the_driver(layer: nn.Module, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_program(Program(Normed(layer), "mse"), ("x",), ("label",))


def test_torchs_own_function_is_back_after_training() -> None:
    assert F.batch_norm.__module__ == "torch.nn.functional"
    assert F.batch_norm.__name__ == "batch_norm"
