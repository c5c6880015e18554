"""How long a rank waits for the others, noted around any collective."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from hvdspark.collectives.protocol import Collective, DistributedOptimizer

# Tensors that are broadcast at once.
_TOGETHER = 64


class Waiting:
    """What is known of the exchanges of one rank. Any thread may read it while others are in an exchange.

    Attributes:
        calls: exchanges that are over.
        seconds: that they took, waiting for the other ranks included.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.calls, self.seconds = 0, 0.0
        self._clock = clock
        self._inside: dict[int, tuple[str, float]] = {}  # by thread: name, since when

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Inside the context the calling thread is in the exchange `name`."""
        thread, began = threading.get_ident(), self._clock()
        self._inside[thread] = (name, began)
        try:
            yield
        finally:
            self._inside.pop(thread, None)
            self.calls += 1
            self.seconds += self._clock() - began

    def inside(self) -> tuple[str, float] | None:
        """(name, seconds so far) of the exchange that has taken longest; None where there is none now."""
        inside = list(self._inside.values())
        if not inside:
            return None
        name, began = min(inside, key=lambda exchange: exchange[1])
        return name, self._clock() - began


class WatchedCollective:
    """A `Collective` that does what another one does.

    Attributes:
        waiting: how long this rank was, and is, in its exchanges.
    """

    def __init__(self, inner: Collective, waiting: Waiting | None = None) -> None:
        self._inner = inner
        self.rank, self.size = inner.rank, inner.size
        self.waiting = waiting or Waiting()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        with self.waiting(name):
            return self._inner.allreduce_sum(tensor, name)

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        with self.waiting(name):
            return self._inner.broadcast(tensor, root, name)

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        with self.waiting(name):
            return self._inner.alltoall(tensor, splits, name)

    def alltoall_async(self, tensor: Tensor, splits: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        with self.waiting(name):  # a library without calls that run beside others does all of it now
            finish = self._inner.alltoall_async(tensor, splits, name)

        def wait() -> tuple[Tensor, Tensor]:
            with self.waiting(name):
                return finish()

        return wait

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        names = sorted(tensors)
        for start in range(0, len(names), _TOGETHER):  # so that it is seen that many small ones get on
            with self.waiting("parameters"):
                self._inner.broadcast_parameters(
                    {name: tensors[name] for name in names[start : start + _TOGETHER]}, root
                )

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> DistributedOptimizer:
        with self.waiting("gradients"):
            made = self._inner.distributed_optimizer(
                optimizer, named_parameters, compression, accumulation_steps, sparse_gradients
            )
        return _WatchedOptimizer(made, self.waiting)


class _WatchedOptimizer:
    def __init__(self, inner: DistributedOptimizer, waiting: Waiting) -> None:
        self.optimizer = inner.optimizer
        self._inner, self._waiting = inner, waiting

    def synchronize(self) -> None:
        with self._waiting("gradients"):
            self._inner.synchronize()

    def step(self) -> None:
        self._inner.step()


def watched(collective: Collective) -> WatchedCollective:
    """The collective itself where it is watched already."""
    return collective if isinstance(collective, WatchedCollective) else WatchedCollective(collective)
