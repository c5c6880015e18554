from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.collectives import ThreadedCollective, run_threaded
from hvdspark.errors import ConfigurationError
from hvdspark.store import Store
from hvdspark.train.callbacks import Callback, TrainState
from hvdspark.train.sync import check_in_sync, make_contiguous, sync_buffers
from tests.unit.train.datasets import click_columns, train_spec, write_dataset
from tests.unit.train.toys import ClickNet, click_program, train_on_threads


def test_statistics_are_averaged_and_other_buffers_come_from_rank_0() -> None:
    def body(collective: ThreadedCollective) -> dict[str, torch.Tensor]:
        module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False))
        module.register_buffer("constant", torch.tensor([0.1 + collective.rank]))
        module[0].running_mean.fill_(float(collective.rank))
        module[0].running_var.fill_(10.0 * collective.rank)
        module[0].num_batches_tracked.fill_(5 + collective.rank)
        sync_buffers(module, collective)
        return dict(module.named_buffers())

    for buffers in run_threaded(3, body):
        assert buffers["0.running_mean"].tolist() == [1.0, 1.0]
        assert buffers["0.running_var"].tolist() == [10.0, 10.0]
        assert buffers["0.num_batches_tracked"] == 5
        assert torch.equal(buffers["constant"], torch.tensor([0.1]))


def test_contiguous_keeps_values_and_identity() -> None:
    module = nn.Linear(3, 2)
    weight = module.weight
    weight.data = torch.arange(6.0).reshape(3, 2).t()
    before = weight.detach().clone()
    make_contiguous(module)
    assert module.weight is weight
    assert weight.is_contiguous()
    assert torch.equal(weight, before)


class Renormed(ClickNet):
    """Scales the rows that it looks up down in its table: on each rank others."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding.max_norm = 0.5


class Noisy(ClickNet):
    def forward(self, dense: Tensor, id: Tensor) -> Tensor:
        with torch.no_grad():
            self.hidden.weight.add_(torch.randn_like(self.hidden.weight))
        return super().forward(dense, id)


class OnOneRank(Callback):
    def on_batch_end(self, state: TrainState) -> None:
        if state.rank == 1:
            with torch.no_grad():
                state.module.out.weight.clamp_(-0.01, 0.01)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"module": Renormed}, "embedding.weight"),
        ({"module": Noisy}, "hidden.weight"),
        ({"callbacks": lambda: [OnOneRank()]}, "out.weight"),
    ],
)
def test_ranks_whose_weights_drift_apart_say_so(
    tmp_path: Path, changes: dict[str, Callable[[], Any]], name: str
) -> None:
    store = Store(tmp_path.as_uri())
    spec = train_spec(store, write_dataset(store, click_columns(60)))
    with pytest.raises(ConfigurationError, match=f"drifted apart: '{name}'.*epoch 0.*Hint"):
        train_on_threads(spec, lambda: click_program(**{key: make() for key, make in changes.items()}), 2)


@pytest.mark.parametrize("dtype", [None, torch.bool, torch.complex64, torch.bfloat16])
def test_parameters_of_any_kind_or_none_can_be_alike(dtype: torch.dtype | None) -> None:
    module = nn.Module()
    if dtype is not None:
        module.register_parameter("weight", nn.Parameter(torch.ones(3).to(dtype), requires_grad=False))
    run_threaded(2, lambda collective: check_in_sync(module, collective, "after epoch 0"))
