from __future__ import annotations

import functools
import subprocess
from typing import Any

import pytest
import torch
from torch import nn

from hvdspark.errors import ConfigurationError
from hvdspark.train.optimizer import make_optimizer


class Closure(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        super().step(closure)


@pytest.mark.parametrize(
    ("given", "kind", "rate"),
    [
        ("adam", torch.optim.Adam, 0.3),
        ("adamw", torch.optim.AdamW, 0.3),
        ("sgd", torch.optim.SGD, 0.3),
        ("adagrad", torch.optim.Adagrad, 0.3),
        ("rmsprop", torch.optim.RMSprop, 0.3),
        (torch.optim.NAdam, torch.optim.NAdam, 0.3),
        (functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD, 0.3),
        (functools.partial(torch.optim.SGD, lr=0.7), torch.optim.SGD, 0.7),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.9), torch.optim.SGD, 0.9),
        (lambda parameters, lr: torch.optim.SGD(parameters, lr=lr * 2), torch.optim.SGD, 0.6),
    ],
)
def test_the_learning_rate_goes_to_what_has_none(given: Any, kind: type, rate: float) -> None:
    optimizer = make_optimizer(given, nn.Linear(2, 1), 0.3)
    assert type(optimizer) is kind
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_a_name_means_the_fused_kernel_where_there_is_one(name: str) -> None:
    assert make_optimizer(name, nn.Linear(2, 1), 0.3).param_groups[0]["fused"] is True
    assert not make_optimizer(name, nn.Linear(2, 1).double(), 0.3).param_groups[0]["fused"]
    assert not make_optimizer(name, nn.Embedding(2, 1, sparse=True), 0.3).param_groups[0]["fused"]
    assert not make_optimizer(torch.optim.Adam, nn.Linear(2, 1), 0.3).param_groups[0]["fused"]


def test_an_optimizer_is_used_as_it_is() -> None:
    module = nn.Linear(2, 1)
    own = torch.optim.SGD([{"params": [module.weight], "lr": 0.5}, {"params": [module.bias]}], lr=0.1)
    assert make_optimizer(own, module, 0.3) is own
    assert [group["lr"] for group in own.param_groups] == [0.5, 0.1]


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    assert make_optimizer("adamw", module, 0.3).param_groups[0]["params"] == [module.weight]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lion", "unknown optimizer: 'lion'"),
        (3, "'int'"),
        (lambda parameters: None, "must return a torch Optimizer: 'NoneType'"),
        (torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1), "not the model's"),
        (torch.optim.LBFGS, "closure are not supported: 'LBFGS'"),
        (functools.partial(Closure, lr=0.1), "closure are not supported: 'Closure'"),
        (functools.partial(subprocess.call, ["false"]), r"is not called: 'subprocess\.call'"),
        (nn.Linear, "makes no optimizer, and is not called: 'torch.*Linear'"),
    ],
)
def test_what_cannot_train_is_refused(given: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_optimizer(given, nn.Linear(2, 1), 0.3)


@pytest.mark.parametrize(
    ("module", "words"), [(nn.LazyLinear(1), "no shape yet: 'weight'"), (nn.ReLU(), "no parameter to train: 'ReLU'")]
)
def test_modules_without_usable_parameters_are_refused(module: nn.Module, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_optimizer("adam", module, 0.3)


def test_state_made_before_fit_goes_where_the_parameters_went() -> None:
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)  # as on a GPU, parameters stay the same objects
    try:
        module.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    made = make_optimizer(optimizer, module, 0.3)
    assert {made.state[parameter]["exp_avg"].device.type for parameter in module.parameters()} == {"meta"}
    assert made.state[module.weight]["step"] == 1
