"""Ranks that are threads of one process."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hvdspark.collectives.dtypes import summable
from hvdspark.collectives.protocol import DistributedOptimizer, rows_by_rank
from hvdspark.collectives.summing import SummingOptimizer

R = TypeVar("R")


class ThreadedCollective:
    """One of N ranks that are threads of this process. Made by `run_threaded`; for tests.

    Args:
        rank, size: this rank, and the number of ranks.
        board: where the ranks meet.

    Attributes:
        calls: how often this rank called each collective, by the name given to it.
        sent_bytes: what this rank's alltoall calls gave to *other* ranks, in bytes, by name.
    """

    def __init__(self, rank: int, size: int, board: _Board) -> None:
        self.rank, self.size, self._board = rank, size, board
        self.calls: Counter[str] = Counter()
        self.sent_bytes: Counter[str] = Counter()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        # Every rank adds up in rank order, so all ranks get the same bits.
        wire, back = (tensor, None) if tensor.is_sparse else summable(tensor.detach())
        parts = self._exchange(name, wire.detach().clone())
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total if back is None else back(total)

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        return self._exchange(name, tensor.detach().clone())[root].clone()

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        parts = [part.clone() for part in rows_by_rank(tensor.detach(), splits, self.size)]
        others = [part for rank, part in enumerate(parts) if rank != self.rank]
        self.sent_bytes[name] += sum(part.numel() * part.element_size() for part in others)
        received = [given[self.rank] for given in self._exchange(name, parts)]
        return torch.cat(received), torch.tensor([len(part) for part in received], dtype=torch.int32)

    def alltoall_async(self, tensor: Tensor, splits: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        received = self.alltoall(tensor, splits, name)
        return lambda: received

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        for name, tensor in tensors.items():
            with torch.no_grad():
                tensor.copy_(self.broadcast(tensor, root, f"parameters/{name}"))

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> DistributedOptimizer:
        return SummingOptimizer(optimizer, named_parameters, self, compression)

    def _exchange(self, name: str, item: Any) -> list[Any]:
        self.calls[name] += 1
        return self._board.exchange(self.rank, name, item)


class _Board:
    """Where the threads of `run_threaded` lay down and pick up tensors."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self._size = size
        self._slots: list[Any] = [None] * size
        self._barrier = threading.Barrier(size, timeout=timeout_s)

    def exchange(self, rank: int, name: str, item: Any) -> list[Any]:
        self._slots[rank] = (name, item)
        self._barrier.wait()
        slots = list(self._slots)
        self._barrier.wait()  # nobody overwrites a slot that another thread still reads
        names = {slot[0] for slot in slots}
        if len(names) != 1:
            raise RuntimeError(f"ranks called different collectives at the same time: {sorted(names)}")
        return [slot[1] for slot in slots]

    def abort(self) -> None:
        self._barrier.abort()


def run_threaded(size: int, fn: Callable[[ThreadedCollective], R], timeout_s: float = 60.0) -> list[R]:
    """Run `fn(collective)` on `size` ranks as threads; results by rank. Raises the first rank's own error.

    A rank that waits for the others for `timeout_s` seconds fails with threading.BrokenBarrierError.
    """
    board = _Board(size, timeout_s)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = fn(ThreadedCollective(rank, size, board))
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)
            board.abort()

    threads = [threading.Thread(target=body, args=(rank,), name=f"rank-{rank}") for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if own or errors:
        raise (own or errors)[0]
    return results
