"""Batch normalisation over the rows of all ranks, so that it does not depend on how many there are.

A batch is cut among the ranks; normalised by each rank's own rows, the same rows would give other weights with every
number of ranks, and a rank with a single row could not train at all. While a training step runs, `F.batch_norm`, which
all layers of torch call and most others, therefore takes its statistics from all ranks: one exchange for each layer in
the forward pass, and one in the backward pass.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from hvdspark.collectives import Collective
from hvdspark.embedding.graphs import outside_graphs
from hvdspark.errors import ConfigurationError


def check_layers(module: nn.Module) -> None:
    """Raise ConfigurationError for layers that cannot be scored on a CPU, or score a row by the rows beside it."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and not layer.track_running_stats:
            raise ConfigurationError(
                "batch normalisation without running statistics scores a row by the rows beside it",
                value=name,
                where=type(module).__name__,
                hint="use track_running_stats=True, or a layer that normalises each row by itself (LayerNorm)",
            )
        if any(base.__module__ == "horovod.torch.sync_batch_norm" for base in type(layer).__mro__):
            raise ConfigurationError(
                "Horovod's SyncBatchNorm cannot be used in a fit",
                value=name,
                where=type(module).__name__,
                hint="use torch.nn.BatchNorm1d, 2d or 3d: a fit takes their statistics from all ranks",
            )


class SharedStatistics:
    """The normalisation layers of one rank's module.

    Attributes:
        active: whether there are layers that exchange something: then every rank takes part in every step.
        counts: False while rows pass through the module that stand in for a rank without any.
    """

    def __init__(self, module: nn.Module, collective: Collective) -> None:
        self.counts = True
        self._collective = collective
        layers = list(module.modules())
        self._by_batch = any(isinstance(layer, _BatchNorm) for layer in layers)
        tracked = [layer for layer in layers if isinstance(layer, _InstanceNorm) and layer.running_mean is not None]
        self._tracked = [tensor for layer in tracked for tensor in (layer.running_mean, layer.running_var)]
        self.active = collective.size > 1 and (self._by_batch or bool(self._tracked))
        self._exchanges = 0

    @contextlib.contextmanager
    def from_all_ranks(self) -> Iterator[None]:
        """Collective if active. Statistics of the forward and backward passes inside are those of all ranks."""
        if not self._by_batch:
            yield
            return
        self._exchanges = 0
        with _lock:
            _shared[threading.get_ident()] = self
            F.batch_norm = _batch_norm
        try:
            yield
        finally:
            with _lock:
                del _shared[threading.get_ident()]
                if not _shared:
                    F.batch_norm = _torch_batch_norm

    def after_forward(self, rows: int) -> None:
        """Collective if active. Running statistics of instances become the mean over the rows of all ranks."""
        if not (self._tracked and self.active):
            return
        flat = torch.cat(
            [tensor.double().flatten() for tensor in self._tracked if tensor is not None] + [torch.ones(1)]
        )
        total = self._collective.allreduce_sum(flat * (rows if self.counts else 0), "instance_norm")
        at = 0
        for tensor in self._tracked:
            assert tensor is not None
            if total[-1] > 0:
                tensor.copy_((total[at : at + tensor.numel()] / total[-1]).view_as(tensor))
            at += tensor.numel()

    def normalise(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        """Collective if active. What `F.batch_norm` gives in training for the rows of all ranks.

        Where all of them are one value a channel, which has no variance, the running statistics are used instead.
        """
        channels = input.shape[1]
        here = input.numel() // max(channels, 1) if self.counts else 0
        alone = self._collective.size == 1
        if alone and here != 1:
            return _torch_batch_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
        name = f"batch_norm/{self._exchanges}"
        self._exchanges += 1
        exact_dtype = torch.promote_types(input.dtype, torch.float32)
        sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=input.device)
        if here:
            # In one pass, and in float64 only for a number a channel: E[x^2] - E[x]^2 cancels in float32. (var_mean
            # gives the same in 5 times the time.)
            moments = torch.stack(torch.batch_norm_update_stats(input.detach().to(exact_dtype), None, None, 0.0))
            moments = moments.double()
            moments[1] += moments[0].square()
            sums = torch.cat([(moments * here).flatten(), sums.new_tensor([here])])
        if not alone:
            sums = self._collective.allreduce_sum(sums, name)
        count = sums[-1].item()
        if count <= 1:
            by_batch = running_mean is None  # torch raises a clear error
            return _torch_batch_norm(input, running_mean, running_var, weight, bias, by_batch, momentum, eps)
        mean, square = (sums[:-1] / count).chunk(2)
        var = (square - mean.square()).clamp(min=0.0)
        with torch.no_grad():
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
        output: Tensor = _Normalise.apply(
            input, weight, bias, mean.to(exact_dtype), var.to(exact_dtype), eps, count, self, name
        )
        return output


class _Normalise(torch.autograd.Function):
    """(input, mean, variance) -> normalised; the backward pass knows that mean and variance are of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        count: float,
        shared: SharedStatistics,
        name: str,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mean, var)
        ctx.eps, ctx.count, ctx.shared, ctx.name, ctx.counts = eps, count, shared, name, shared.counts
        exact = input.to(mean.dtype)
        return torch.batch_norm(
            exact, _as(weight, mean), _as(bias, mean), mean, var, False, 0.0, eps, torch.backends.cudnn.enabled
        ).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, var = ctx.saved_tensors
        shape = [1, -1] + [1] * (input.dim() - 2)
        exact, gradient = input.to(mean.dtype), gradients[0].to(mean.dtype)
        # As if mean and variance were constants; what each row does to them is added when all ranks have told.
        of_input, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            exact,
            _as(weight, mean),
            mean,
            var,
            None,
            None,
            False,
            ctx.eps,
            [ctx.needs_input_grad[0], True, True],
        )
        if ctx.needs_input_grad[0]:
            sums = torch.cat([of_bias, of_weight]).double()
            if not ctx.counts:
                sums.zero_()
            sums = ctx.shared._collective.allreduce_sum(sums, f"{ctx.name}/backward") / ctx.count
            mean_gradient, mean_product = sums.to(mean.dtype).chunk(2)
            scale = (var + ctx.eps).rsqrt()
            factor = scale if weight is None else scale * weight.to(mean.dtype)
            of_input -= (mean_gradient * factor).view(shape)
            of_input.addcmul_(exact - mean.view(shape), (mean_product * factor * scale).view(shape), value=-1)
            of_input = of_input.to(input.dtype)
        return (
            of_input,
            of_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None,
            of_bias.to(weight.dtype if weight is not None else input.dtype) if ctx.needs_input_grad[2] else None,
            *(None,) * 6,
        )


def _as(tensor: Tensor | None, other: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(other.dtype)


_torch_batch_norm = F.batch_norm
_lock = threading.Lock()
_shared: dict[int, SharedStatistics] = {}  # by the thread that trains; tests have several


@outside_graphs
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shared = _shared.get(threading.get_ident())
    if shared is None and len(_shared) == 1:  # a thread of autograd's, which repeats a forward pass (checkpointing)
        shared = next(iter(_shared.values()))
    if shared is None or not training:
        return _torch_batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return shared.normalise(input, running_mean, running_var, weight, bias, momentum, eps)
