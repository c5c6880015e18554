"""What keeps the ranks' copies of a module in sync where gradients do not."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hvdspark.collectives import Collective
from hvdspark.errors import ConfigurationError
from hvdspark.train.gradients import values_of

# Of a parameter's norm. Processors that round otherwise stay far below; what changes weights on one rank does not.
_DRIFT = 1e-2


def kept_in_evaluation(module: nn.Module) -> list[nn.Module]:
    """Layers that the user froze by `eval()`, such as the batch normalisation of a pretrained part.

    None where the whole module is in evaluation mode: that says where it was before, not what to freeze.
    """
    return [layer for layer in module.modules() if not layer.training] if module.training else []


def make_contiguous(module: nn.Module) -> None:
    """Horovod refuses gradients and buffers that are not contiguous; gradients follow their parameters' strides."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if not tensor.is_contiguous():
                tensor.data = tensor.data.contiguous()


def sync_buffers(module: nn.Module, collective: Collective) -> None:
    """Collective. The same buffers on every rank at the end of an epoch.

    Running statistics of normalisation layers become the mean over the ranks, each of which saw other rows; every other
    buffer is taken from rank 0.
    """
    statistics = [
        tensor
        for layer in module.modules()
        if isinstance(layer, _NormBase)
        for tensor in (layer.running_mean, layer.running_var)
        if tensor is not None
    ]
    if statistics:
        flat = torch.cat([tensor.flatten() for tensor in statistics])
        mean = collective.allreduce_sum(flat, "train/statistics") / collective.size
        for tensor, part in zip(statistics, mean.split([tensor.numel() for tensor in statistics]), strict=True):
            tensor.copy_(part.view_as(tensor))
    averaged = {id(tensor) for tensor in statistics}
    others = {f"buffers/{name}": tensor for name, tensor in module.named_buffers() if id(tensor) not in averaged}
    if others:
        collective.broadcast_parameters(others)


def check_in_sync(module: nn.Module, collective: Collective, where: str) -> None:
    """Collective. Raise ConfigurationError on every rank where a parameter is not the same on all of them.

    Gradients are the same on all ranks, so only what changes weights beside the optimizer, on each rank as it likes,
    can let them drift apart; and then what is trained is no one's model.
    """
    if collective.size == 1:
        return
    parameters = ((name, values_of(parameter.detach())) for name, parameter in module.named_parameters())
    real = [(name, value) for name, value in parameters if value.is_floating_point() and value.element_size() > 1]
    if not real:
        return
    sums = torch.stack([value.sum(dtype=torch.float64) for _, value in real]).cpu()
    norms = torch.stack([torch.linalg.vector_norm(value).double() for _, value in real]).cpu()
    # Of numbers that are the same on all ranks, what all ranks find is the same, too.
    total = collective.allreduce_sum(torch.stack([sums, sums.square(), norms.square()]), "train/in_sync")
    spread = total[1] - total[0].square() / collective.size
    drifted = (spread > _DRIFT**2 * total[2] / collective.size).nonzero()
    if len(drifted):
        raise ConfigurationError(
            "the ranks' copies of a parameter have drifted apart",
            value=real[int(drifted[0])][0],
            where=where,
            hint="something changes weights beside the optimizer, on each rank as it likes: a layer in its forward (by "
            "the rows that it sees, or at random), or a callback that acts on one rank alone. Let the optimizer do it, "
            "or all ranks alike, or set num_workers=1",
        )
