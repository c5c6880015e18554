"""The interface of Horovod's optimizer for collectives that have none of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives.protocol import Collective


def summing_optimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    collective: Collective,
    compression: str = "none",
) -> torch.optim.Optimizer:
    """Give `optimizer` the interface of Horovod's DistributedOptimizer, with the sum taken by `collective`.

    Args:
        compression: "none", or "fp16": gradients travel as float16, each scaled so that nothing of it overflows.
    """
    names = {id(parameter): name for name, parameter in named_parameters}
    state = {"synchronized": False}

    def synchronize() -> None:
        state["synchronized"] = True
        reached = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if collective.size == 1 or not reached:
            return
        if compression == "fp16":
            for parameter, total in zip(reached, _sum_as_float16([p.grad for p in reached], collective), strict=True):
                parameter.grad = total
            return
        for parameter in reached:
            assert parameter.grad is not None
            parameter.grad = collective.allreduce_sum(parameter.grad, f"gradients/{names[id(parameter)]}")

    def before_step(*_: Any) -> None:
        if not state["synchronized"]:
            synchronize()
        state["synchronized"] = False

    optimizer.register_step_pre_hook(before_step)
    optimizer.synchronize = synchronize  # type: ignore[attr-defined]
    optimizer.skip_synchronize = contextlib.nullcontext  # type: ignore[attr-defined]
    return optimizer


_LARGEST_EXPONENT = 15  # of float16: 2^15 is below its largest number, 65504
_FLOAT32_EXPONENT = 126


def _sum_as_float16(gradients: Sequence[Tensor], collective: Collective) -> list[Tensor]:
    """Collective. Sums over the ranks of dense gradients that travel in one buffer of float16.

    Gradients of means over large batches would fall below the smallest number of float16 (6e-8). Each is multiplied by
    the power of two that puts the sum of the ranks' largest elements, which bounds all sums, just below the largest.
    """
    values = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in gradients]
    largest = torch.stack(
        [value.abs().max().float() if value.numel() else value.new_zeros(()).float() for value in values]
    )
    bounds = collective.allreduce_sum(largest, "gradients/largest")
    usable = torch.isfinite(bounds) & (bounds > 0)  # NaN says that a rank diverged: it has to arrive
    exponents = torch.frexp(torch.where(usable, bounds, 1.0)).exponent
    steps = (_LARGEST_EXPONENT - exponents).clamp(max=_FLOAT32_EXPONENT).tolist()
    wire = torch.cat([(value.float() * 2.0**step).half().flatten() for value, step in zip(values, steps, strict=True)])
    parts = collective.allreduce_sum(wire, "gradients/float16").split([value.numel() for value in values])
    totals = [
        (part.float() * 2.0**-step).view(value.shape).to(value.dtype)
        for part, value, step in zip(parts, values, steps, strict=True)
    ]
    return [
        torch.view_as_complex(total) if gradient.is_complex() else total
        for total, gradient in zip(totals, gradients, strict=True)
    ]
