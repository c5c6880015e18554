"""From what the user gave as an optimizer to an Optimizer on the rank's own parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from hvdspark.errors import ConfigurationError

_BY_NAME: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


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
    else:
        factory: Callable[..., Any]
        if isinstance(optimizer, str):
            if optimizer not in _BY_NAME:
                raise ConfigurationError(
                    "unknown optimizer", value=optimizer, where="optimizer", hint=f"one of {', '.join(_BY_NAME)}"
                )
            factory = _BY_NAME[optimizer]
        elif callable(optimizer):
            factory = optimizer
        else:
            raise ConfigurationError(
                "the optimizer must be a name, an Optimizer, an Optimizer class or a callable taking the parameters",
                value=type(optimizer).__name__,
                where="optimizer",
            )
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        made = factory(parameters, lr=learning_rate) if _takes_learning_rate(factory) else factory(parameters)
    _check_optimizer(made, module)
    return made


def check_parameters(module: nn.Module) -> None:
    """Raise ConfigurationError where the module has nothing to train or parameters without a shape."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ConfigurationError(
                "a lazy parameter has no shape yet",
                value=name,
                where="model",
                hint="run the module once on a sample batch before fitting",
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigurationError("the module has no parameter to train", value=type(module).__name__, where="model")


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
