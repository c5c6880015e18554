"""Modules, losses and optimizers as JSON and back; what cannot be described is refused, not guessed."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import Tensor, nn

from hvdspark.artifact.objects import describe, rebuild
from hvdspark.artifact.trust import Trust
from hvdspark.errors import PersistenceError


class Tower(nn.Module):
    """Keeps its arguments under their own names."""

    def __init__(self, width: int, sizes: list[int], activation: str = "relu", head: nn.Module | None = None) -> None:
        super().__init__()
        self.width, self.sizes, self.activation, self.head = width, sizes, activation, head
        self.layers = nn.Sequential(*(nn.Linear(width, size) for size in sizes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Forgetful(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)


class Misleading(nn.Module):
    """An attribute has the name of an argument, and another value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = 2 * width
        self.layer = nn.Linear(width, 1)


class Halves(nn.Module):
    """Parameters beside each other in one piece of memory, as a flattened model has them."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.arange(6.0)
        self.a, self.b = nn.Parameter(both[:4].view(2, 2)), nn.Parameter(both[4:])


MODULES = [
    nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1, bias=False)),
    nn.Sequential(
        nn.Embedding(10, 4, padding_idx=0), nn.Flatten(), nn.LayerNorm((4,)), nn.GELU(), nn.Sigmoid(), nn.Identity()
    ),
    nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleList([nn.Conv1d(2, 3, 3, padding=1), nn.PReLU()])}),
    nn.EmbeddingBag(10, 4, mode="sum", include_last_offset=True),
    Tower(4, [3, 2], activation="tanh", head=nn.Linear(2, 1)),
    Tower(4, [2], activation=torch.relu),  # type: ignore[arg-type]
    Forgetful(3),
    Misleading(3),
    Halves(),
    nn.Sequential(nn.Linear(2, 2)).append(nn.ReLU()),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_modules_come_back_equal(module: nn.Module) -> None:
    copy = rebuild(json.loads(json.dumps(describe(module, "model"))))
    assert repr(copy) == repr(module)
    copy.load_state_dict(module.state_dict())


def test_evaluation_mode_is_kept() -> None:
    assert not rebuild(describe(nn.Dropout(0.5).eval(), "model")).training


def test_losses_optimizers_and_values() -> None:
    assert rebuild(describe("bce_with_logits", "loss")) == "bce_with_logits"
    assert rebuild(describe(torch.optim.Adam, "optimizer")) is torch.optim.Adam
    assert rebuild(describe(nn.functional.mse_loss, "loss")) is nn.functional.mse_loss
    assert repr(rebuild(describe(nn.BCEWithLogitsLoss(), "loss"))) == repr(nn.BCEWithLogitsLoss())
    partial = rebuild(describe(functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9), "optimizer"))
    assert (partial.func, partial.keywords) == (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9})
    assert rebuild(describe(["mse", None, 1.5], "loss")) == ["mse", None, 1.5]


def test_what_has_no_import_path_is_refused() -> None:
    with pytest.raises(PersistenceError, match="no import path.*loss.*Hint"):
        describe(lambda x: x, "loss")


def test_tensors_are_not_forgotten() -> None:
    with pytest.raises(PersistenceError, match="holds tensors that are no weights.*loss"):
        describe(torch.tensor(1.0), "loss")


def test_a_class_that_is_gone_is_named() -> None:
    with pytest.raises(PersistenceError, match="cannot import.*nowhere:Net.*Hint"):
        rebuild({"module": "nowhere:Net", "arguments": {}, "training": True})


def test_only_modules_are_built_from_a_file() -> None:
    with pytest.raises(PersistenceError, match="not a torch module class"):
        rebuild({"module": "subprocess:Popen", "arguments": {"args": ["true"]}, "training": True})


def test_what_hvdspark_described_before_is_still_rebuilt() -> None:
    layer = {"module": "torch.nn.modules.linear:Linear", "training": True}
    old = {
        "module": "torch.nn.modules.container:Sequential",
        "children": [
            ["first", {**layer, "arguments": {"in_features": 3, "out_features": 4, "bias": False}}],
            [
                "second",
                {
                    "module": "torch.nn.modules.normalization:LayerNorm",
                    "training": False,
                    "arguments": {"normalized_shape": [4], "eps": 1e-4, "elementwise_affine": True, "bias": True},
                },
            ],
        ],
    }
    expected = nn.Sequential()
    expected.add_module("first", nn.Linear(3, 4, bias=False))
    expected.add_module("second", nn.LayerNorm((4,), eps=1e-4).eval())
    copy = rebuild(old)
    assert repr(copy) == repr(expected)
    assert not copy.second.training
    tower = {"module": f"{__name__}:Tower", "training": True}
    arguments = {"width": 4, "sizes": [3], "activation": "tanh", "head": None}
    with pytest.raises(PersistenceError, match="does not trust.*Tower.*spark.hvdspark.trustedPackages=tests"):
        rebuild({**tower, "arguments": arguments})
    copy = rebuild({**tower, "arguments": arguments}, {}, Trust(("tests",)))
    assert (copy.sizes, copy.activation) == ((3,), "tanh")
