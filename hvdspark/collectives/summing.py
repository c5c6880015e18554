"""Distributed optimizers for collectives whose library has none of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hvdspark.collectives.protocol import Collective


class SummingOptimizer:
    """A `DistributedOptimizer` whose sums are taken by the collective when the backward pass is over.

    Args:
        compression: "none", or "fp16": gradients travel as float16, each scaled so that nothing of it overflows.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        collective: Collective,
        compression: str = "none",
    ) -> None:
        self.optimizer = optimizer
        self._names = {id(parameter): name for name, parameter in named_parameters}
        self._collective, self._compression = collective, compression
        self._synchronized = False
        optimizer.register_step_pre_hook(self._before_step)

    def synchronize(self) -> None:
        self._synchronized = True
        reached = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._collective.size == 1 or not reached:
            return
        if self._compression == "fp16":
            totals = _sum_as_float16([parameter.grad for parameter in reached], self._collective)
            for parameter, total in zip(reached, totals, strict=True):
                parameter.grad = total
            return
        for parameter in reached:
            name = f"gradients/{self._names[id(parameter)]}"
            parameter.grad = self._collective.allreduce_sum(parameter.grad, name)

    def step(self) -> None:
        self.optimizer.step()

    def _before_step(self, *_: object) -> None:
        if not self._synchronized:
            self.synchronize()
        self._synchronized = False


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
