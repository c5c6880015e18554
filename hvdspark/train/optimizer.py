"""From what the user gave as an optimizer to an Optimizer on the rank's own parameters."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hvdspark.artifact.tables import collections_of
from hvdspark.checks import one_of
from hvdspark.errors import ConfigurationError

_BY_NAME: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
_FASTER_FUSED_ON_CPU = ("adam", "adamw", "adagrad")


def make_optimizer(optimizer: Any, module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """An optimizer on the module's parameters.

    Args:
        optimizer: a name, an Optimizer class, a functools.partial of one, a callable taking the parameters, or an
            Optimizer already made on this module's parameters, which is used as it is.
        learning_rate: given to whatever takes `lr` and does not fix it itself.

    Raises:
        ConfigurationError: unknown name, parameters of another module, nothing to train, or an optimizer that needs
            a closure (L-BFGS evaluates the loss several times for a step, which ranks cannot do in lockstep).
    """
    check_parameters(module)
    if isinstance(optimizer, torch.optim.Optimizer):
        made = optimizer
        if _left_behind(made):
            made.load_state_dict(made.state_dict())  # brings the state to where each parameter is
    else:
        factory = _factory(optimizer, module)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        made = factory(parameters, lr=learning_rate) if _takes_learning_rate(factory) else factory(parameters)
    _check_optimizer(made, module)
    return made


def _left_behind(optimizer: torch.optim.Optimizer) -> bool:
    """Whether state that was made before fit stayed where the parameters were before they went to a GPU."""
    return any(
        isinstance(value, torch.Tensor) and value.dim() > 0 and value.device != parameter.device
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )


def check_optimizer(optimizer: Any, module: nn.Module) -> None:
    """Raise what `make_optimizer` would, as far as that is known without making one.

    With the first optimizer that a process makes, torch imports its compiler: a second, and an environment variable.
    The driver is spared both. Lazy parameters may still be without a shape here.
    """
    check_parameters(module, lazy=True)
    if isinstance(optimizer, torch.optim.Optimizer):
        _check_optimizer(optimizer, module)
    else:
        _factory(optimizer, module)


def _factory(optimizer: Any, module: nn.Module) -> Callable[..., Any]:
    if isinstance(optimizer, str):
        return named(optimizer, module)
    if not callable(optimizer):
        raise ConfigurationError(
            "the optimizer must be a name, an Optimizer, an Optimizer class or a callable taking the parameters",
            value=type(optimizer).__name__,
            where="optimizer",
        )
    factory: Callable[..., Any] = optimizer
    made_by: Any = optimizer
    while isinstance(made_by, functools.partial):
        made_by = made_by.func
    other_class = isinstance(made_by, type) and not issubclass(made_by, torch.optim.Optimizer)
    # To find out by calling it could be to run a program.
    foreign = (getattr(made_by, "__module__", None) or "").partition(".")[0] in sys.stdlib_module_names
    if other_class or foreign:
        raise ConfigurationError(
            "this makes no optimizer, and is not called",
            value=f"{made_by.__module__}.{getattr(made_by, '__qualname__', made_by)}",
            where="optimizer",
            hint="give a subclass of torch.optim.Optimizer, a functools.partial of one, or a function that makes one",
        )
    return factory


def sparse_parameters(module: nn.Module) -> set[int]:
    """id() of the parameters whose gradients are sparse tensors."""
    layers = (layer for layer in module.modules() if isinstance(layer, nn.Embedding | nn.EmbeddingBag))
    return {id(layer.weight) for layer in layers if layer.sparse}


def check_parameters(module: nn.Module, *, lazy: bool = False) -> None:
    """Raise ConfigurationError where the module has nothing to train or, unless `lazy`, parameters without a shape."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter) and not lazy:
            raise ConfigurationError(
                "a lazy parameter has no shape yet",
                value=name,
                where="model",
                hint="run the module once on a sample batch before fitting",
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigurationError(
            "the module has no parameter to train",
            value=type(module).__name__,
            where="model",
            hint="rows of sharded tables are no Parameter, and are not enough alone: add a dense one, such as a bias"
            if collections_of(module)
            else "give it layers, such as nn.Linear, or unfreeze some with requires_grad_(True); "
            "hvdspark.estimators.TorchModel.fromModule scores a module as it is, without a fit",
        )


def named(name: str, module: nn.Module) -> Callable[..., torch.optim.Optimizer]:
    """What makes the optimizer of that name from parameters. ConfigurationError for an unknown name."""
    one_of("optimizer", name, list(_BY_NAME), "optimizer")
    # One pass over memory instead of a dozen: Adam on 16 million parameters takes 21 ms instead of 199 (one core).
    fused = (
        name in _FASTER_FUSED_ON_CPU
        and torch.__version__ >= "2.4"
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in module.parameters())
        and not sparse_parameters(module)
    )
    return functools.partial(_BY_NAME[name], fused=True) if fused else _BY_NAME[name]


def _takes_learning_rate(factory: Callable[..., Any]) -> bool:
    if isinstance(factory, functools.partial) and "lr" in factory.keywords:
        return False
    try:
        return "lr" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False


def _check_optimizer(made: Any, module: nn.Module) -> None:
    if not isinstance(made, torch.optim.Optimizer):
        raise ConfigurationError(
            "the callable must return a torch Optimizer", value=type(made).__name__, where="optimizer"
        )
    own = {id(parameter) for parameter in module.parameters()}
    if any(id(parameter) not in own for group in made.param_groups for parameter in group["params"]):
        raise ConfigurationError(
            "the optimizer holds parameters that are not the model's",
            where="optimizer",
            hint="make the optimizer from this model's parameters(), or give its class or a functools.partial",
        )
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if isinstance(made, torch.optim.LBFGS) or (closure is not None and closure.default is inspect.Parameter.empty):
        raise ConfigurationError(
            "optimizers that need a closure are not supported", value=type(made).__name__, where="optimizer"
        )
