"""The interface of Horovod's optimizer for collectives that have none of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch

from hvdspark.collectives.protocol import Collective


def summing_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    collective: Collective,
) -> torch.optim.Optimizer:
    """Give `optimizer` the interface of Horovod's DistributedOptimizer, with the sum taken by `collective`."""
    names = {id(parameter): name for name, parameter in named_parameters}
    state = {"synchronized": False}

    def synchronize() -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and collective.size > 1:
                    name = f"gradients/{names[id(parameter)]}"
                    parameter.grad = collective.allreduce_sum(parameter.grad, name)
        state["synchronized"] = True

    def before_step(*_: Any) -> None:
        if not state["synchronized"]:
            synchronize()
        state["synchronized"] = False

    optimizer.register_step_pre_hook(before_step)
    optimizer.synchronize = synchronize  # type: ignore[attr-defined]
    optimizer.skip_synchronize = contextlib.nullcontext  # type: ignore[attr-defined]
    return optimizer
