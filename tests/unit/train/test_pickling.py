"""Modules on their way to ranks: without the values of their weights, and with everything else."""

from __future__ import annotations

import torch
from torch import nn

from hvdspark.train.pickling import skeleton, unpickled


def test_a_skeleton_has_no_weights_but_keeps_everything_else() -> None:
    module = nn.Sequential(nn.Linear(500, 500), nn.BatchNorm1d(500))
    module.constant = torch.arange(3)  # type: ignore[assignment]
    module[0].bias.requires_grad_(False)
    pickled = skeleton(module)
    assert len(pickled) < 10_000
    copy = unpickled(pickled)
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy.constant, torch.arange(3))
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in module.parameters()]
    x = torch.randn(4, 500)
    assert torch.equal(copy.eval()(x), module.eval()(x))


def test_a_skeleton_keeps_what_is_noted_on_a_parameter() -> None:
    module = nn.Linear(2, 2)
    module.weight.no_decay = True  # type: ignore[attr-defined]
    assert unpickled(skeleton(module)).weight.no_decay


class Sharing(nn.Module):
    """A weight made of another one's memory, and a part of it under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.row = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.outer.weight.data = self.inner.weight.data
        self.row.weight = nn.Parameter(self.inner.weight.data[1:2])
        self.column = self.inner.weight.detach()[:, 2]


def test_what_is_a_part_of_a_weight_stays_one_on_its_way_to_ranks() -> None:
    module = Sharing()
    copy = unpickled(skeleton(module))
    copy.load_state_dict(module.state_dict())
    with torch.no_grad():
        copy.inner.weight.copy_(torch.arange(9.0).reshape(3, 3))
    assert torch.equal(copy.outer.weight, copy.inner.weight)
    assert copy.row.weight.tolist() == [[3.0, 4.0, 5.0]]
    assert copy.column.tolist() == [2.0, 5.0, 8.0]
    assert [parameter.is_leaf for parameter in copy.parameters()] == [True] * 6
