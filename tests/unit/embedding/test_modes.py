"""Modes of torch in which tables are looked up: what follows is plain training, or it is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hvdspark.embedding import ShardedEmbeddingCollection, SparseOptimizer, TableConfig
from hvdspark.errors import ConfigurationError
from hvdspark.store import Store

IDS = torch.arange(40) % 7


def tables() -> ShardedEmbeddingCollection:
    adam = SparseOptimizer("adam", 0.1)
    configs = [TableConfig("a", 2, 100, placement="row", optimizer=adam), TableConfig("b", 2, optimizer=adam)]
    configs.append(TableConfig("small", 2, 10))
    return ShardedEmbeddingCollection(configs, {name: name for name in "ab"} | {"s": "small"})


def step(module: ShardedEmbeddingCollection, ids: Tensor) -> None:
    vectors = module.train()([ids, ids, ids])
    sum(vector.pow(2).sum() for vector in vectors.values()).backward()  # type: ignore[union-attr]
    module.apply_gradients()


def rows(module: ShardedEmbeddingCollection) -> Tensor:
    with torch.no_grad():
        return torch.cat(list(module.eval()([IDS, IDS, IDS]).values()), dim=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_passes_between_steps_leave_them_as_they_are(
    mode: Callable[[], AbstractContextManager[Any]], training: bool, tmp_path: Path
) -> None:
    """As of a validation that comes before the first step, or with a larger batch than any before."""
    module, plain, store = tables(), tables(), Store(str(tmp_path))
    for number in range(3):
        with mode():
            module.train(training)([IDS[: 10 * (number + 1)]] * 3)
        step(module, IDS[: 4 * (number + 1)])
        step(plain, IDS[: 4 * (number + 1)])
    assert torch.equal(rows(module), rows(plain))
    entries, again = module.write_rows(store, "rows", state=True), tables()
    again.replicated.load_state_dict(module.replicated.state_dict())
    with mode():
        again.read_rows(store, "rows", module.description(), entries)
    step(again, IDS)
    step(module, IDS)
    assert torch.equal(rows(again), rows(module))


# What cannot take the rows along, or does not reach them.
REFUSED: dict[str, Callable[[nn.Module], Any]] = {
    "jit.trace": lambda module: torch.jit.trace(module, (IDS,), check_trace=False),
    "export": lambda module: torch.export.export(module, (IDS,)),
    "requires_grad_": lambda module: module.tables.requires_grad_(False),  # type: ignore[operator, union-attr]
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = tables()

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat(list(self.tables([ids, ids, ids]).values()), dim=1)


@pytest.mark.parametrize("way", REFUSED)
def test_what_rows_cannot_follow_is_refused_in_words(way: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sharded rows are.*Hint: "):
        REFUSED[way](Net().eval())


def test_rows_that_may_not_change_do_not() -> None:
    """eval() of the collection in a module that is trained, and its replicated tables as any Parameter."""
    module = Net().train()
    step(module.tables, IDS)
    before = rows(module.tables)
    module.tables.replicated.requires_grad_(False)
    module.tables.eval()
    (module(IDS).sum() * nn.Parameter(torch.ones(()))).backward()
    module.tables.apply_gradients()
    assert all(parameter.grad is None or not parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(rows(module.tables), before)
    assert module.tables.requires_grad_(True) is module.tables
