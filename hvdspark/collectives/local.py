"""A single process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hvdspark.collectives.protocol import DistributedOptimizer, rows_by_rank
from hvdspark.collectives.summing import SummingOptimizer


class LocalCollective:
    """A single rank: no other process, no network, no Horovod."""

    rank = 0
    size = 1

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        return tensor.clone()

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        return tensor.clone()

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        (mine,) = rows_by_rank(tensor, splits, self.size)
        return mine.clone(), splits.clone()

    def alltoall_async(self, tensor: Tensor, splits: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        received = self.alltoall(tensor, splits, name)
        return lambda: received

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        return None

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> DistributedOptimizer:
        return SummingOptimizer(optimizer, named_parameters, self)
