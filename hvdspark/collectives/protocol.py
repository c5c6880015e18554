"""What ranks can do together: the interface that hides the communication library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor


class DistributedOptimizer(Protocol):
    """An optimizer of this rank whose steps see gradients *summed* over the ranks.

    Attributes:
        optimizer: what steps: its groups and state are those to look at, to change and to save. Its own `step()` is
            collective, too, so that hooks and schedulers of torch work on it.
    """

    optimizer: torch.optim.Optimizer

    def synchronize(self) -> None:
        """Collective. Wait until every `grad` is the sum over the ranks, so that it can be looked at and clipped.

        Parameters that no gradient reached on some rank must have been given a zero gradient before.
        """
        ...

    def step(self) -> None:
        """Collective, unless `synchronize` came since the last step: step on the sums."""
        ...


class Collective(Protocol):
    """The operations hvdspark needs from a communication library."""

    rank: int
    size: int

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        """Collective. Element-wise sum over the ranks; same shape and dtype; the input is left as it is.

        Any dtype but the quantized ones; bfloat16 and float8 are added up in float32, a sum of bools is whether any is.
        """
        ...

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        """Collective. The root's tensor on every rank (same shape and dtype everywhere; any dtype)."""
        ...

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """Collective. Give every rank its own rows of a tensor.

        Args:
            tensor: [capacity, ...]; the first splits[0] rows go to rank 0, the next splits[1] to rank 1, and so on.
                Rows beyond sum(splits) stay here. Keep the capacity from step to step, and at least 1: Horovod
                remembers the negotiation of a name only while the shape is the same.
            splits: int32 [size], on the CPU, >= 0, with a sum <= capacity.

        Returns:
            received: [sum(received_splits), ...], rows in the order of the ranks they come from; the input's dtype,
                which may be bfloat16 too. It shares no memory with any rank's input.
            received_splits: int32 [size].
        """
        ...

    def alltoall_async(self, tensor: Tensor, splits: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        """Collective. Begin an `alltoall`; what is returned waits for it to end, and must be called once.

        Until then the tensor must not change, and no other call may have the same name. A library without calls that
        run beside the caller's work may do all of it at once.
        """
        ...

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        """Collective. Overwrite, in place, every tensor of the dict with the root's."""
        ...

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> DistributedOptimizer:
        """Let an optimizer's steps see the gradients of all ranks. Collective where the library compares the ranks.

        The caller scales its local loss so that the sum over the ranks is the gradient of the global mean. With
        `accumulation_steps` n, gradients of n backward passes are added up locally before they are exchanged; nothing
        divides by n, and an incomplete last group is exchanged by `synchronize`.

        Args:
            compression: "none", or "fp16": gradients travel as float16.
            sparse_gradients: gradients may be sparse tensors, for the same parameters on every rank.
        """
        ...


def rows_by_rank(tensor: Tensor, splits: Tensor, size: int) -> list[Tensor]:
    """Views of the rows that go to each rank; ValueError where `alltoall` was given splits that cannot be."""
    if splits.dtype != torch.int32 or splits.shape != (size,) or bool((splits < 0).any()):
        raise ValueError(f"alltoall takes {size} int32 splits >= 0: {splits}")
    if int(splits.sum()) > len(tensor):
        raise ValueError(f"alltoall was told to send {int(splits.sum())} rows of a tensor of {len(tensor)}")
    return list(tensor[: int(splits.sum())].split(splits.tolist()))
