"""What ranks can do together, behind one narrow interface.

`HorovodCollective` is the real thing, `LocalCollective` is a world of one without Horovod, `ThreadedCollective`
runs N ranks as threads of one process so that distributed logic is tested in milliseconds. Call sites never ask
for the world size to decide what to do: a world of one is just another implementation.

Every method that says *Collective* must be called by all ranks in the same order with the same name; a name must
be stable from step to step, because Horovod's response cache is keyed by it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


class Collective(Protocol):
    """The operations hvdspark needs from a communication library."""

    rank: int
    size: int

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        """Collective. Element-wise sum over the ranks; same shape and dtype; the input is left as it is."""
        ...

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        """Collective. The root's tensor on every rank (same shape and dtype everywhere)."""
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
    ) -> torch.optim.Optimizer:
        """An optimizer whose `step()` is collective and sees gradients *summed* over the ranks.

        The caller scales its local loss so that this sum is the gradient of the global mean. With
        `accumulation_steps` n, gradients of n backward passes are added up locally before they are exchanged;
        nothing divides by n. `synchronize()` may come earlier (an incomplete last group) and waits for the exchange,
        so that gradients can be clipped before `step()`, which must then run inside `skip_synchronize()`. Parameters
        that no gradient reached on some rank must be given a zero gradient before `synchronize()`. With
        `sparse_gradients`, gradients may be sparse tensors, for the same parameters on every rank.
        """
        ...


class LocalCollective:
    """A world of one: no process, no network, no Horovod."""

    rank = 0
    size = 1

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        return tensor.clone()

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        return tensor.clone()

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        (mine,) = _parts(tensor, splits, self.size)
        return mine.clone(), splits.clone()

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        return None

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> torch.optim.Optimizer:
        return _summing_optimizer(optimizer, named_parameters, self)


class HorovodCollective:
    """Horovod, already initialised in this process (ring-AllReduce over Gloo, MPI or NCCL)."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        return self._hvd.allreduce(tensor, name=name, op=self._hvd.Sum)

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        return self._hvd.broadcast(tensor, root_rank=root, name=name)

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        _parts(tensor, splits, self.size)
        tensor = tensor.detach()
        # Gloo knows no bfloat16 (GetAlgorithmsForType in Horovod's gloo_operations.cc); the bits travel as int16.
        wire = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        received, received_splits = self._hvd.alltoall(wire, splits=splits, name=name)
        return received.view(tensor.dtype), received_splits.cpu()

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        self._hvd.broadcast_parameters(tensors, root_rank=root)

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> torch.optim.Optimizer:
        names = {parameter: f"gradients/{name}" for name, parameter in named_parameters}
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        distributed = self._hvd.DistributedOptimizer(
            _adoptable(optimizer),
            named_parameters=[(name, parameter) for parameter, name in names.items()],
            compression={"none": self._hvd.Compression.none, "fp16": self._hvd.Compression.fp16}[compression],
            backward_passes_per_step=accumulation_steps,
            op=self._hvd.Sum,
            groups=None if sparse_gradients else _exchange_groups(trained),
        )
        # torch wraps `step` to run its hooks. Wrapping Horovod's `step` too would run them twice.
        type(distributed).step.hooked = True
        if not sparse_gradients:
            _always_whole_groups(distributed)
        return distributed


def current_collective() -> Collective:
    """Horovod's ranks if Horovod is initialised in this process, else a world of one."""
    horovod = sys.modules.get("horovod.torch")
    return HorovodCollective() if horovod is not None and horovod.is_initialized() else LocalCollective()


class ThreadedCollective:
    """One of N ranks that are threads of this process. Made by `run_threaded`; for tests.

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
        parts = self._exchange(name, tensor.detach().clone())
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        return self._exchange(name, tensor.detach().clone())[root].clone()

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        parts = [part.clone() for part in _parts(tensor.detach(), splits, self.size)]
        others = [part for rank, part in enumerate(parts) if rank != self.rank]
        self.sent_bytes[name] += sum(part.numel() * part.element_size() for part in others)
        received = [given[self.rank] for given in self._exchange(name, parts)]
        return torch.cat(received), torch.tensor([len(part) for part in received], dtype=torch.int32)

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
    ) -> torch.optim.Optimizer:
        return _summing_optimizer(optimizer, named_parameters, self)

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
    """Run `fn(collective)` on `size` ranks as threads; results by rank. Raises the first rank's own error."""
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


def _parts(tensor: Tensor, splits: Tensor, size: int) -> list[Tensor]:
    """Views of the rows that go to each rank; ValueError where `alltoall` was given splits that cannot be."""
    if splits.dtype != torch.int32 or splits.shape != (size,) or bool((splits < 0).any()):
        raise ValueError(f"alltoall takes {size} int32 splits >= 0: {splits}")
    if int(splits.sum()) > len(tensor):
        raise ValueError(f"alltoall was told to send {int(splits.sum())} rows of a tensor of {len(tensor)}")
    return list(tensor[: int(splits.sum())].split(splits.tolist()))


def _adoptable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """`optimizer` in a form that Horovod can copy without loss.

    Horovod's DistributedOptimizer makes a subclass and constructs it from the parameter groups alone. Constructor
    arguments that are not options of the groups are lost (Adagrad's initial_accumulator_value, any required argument
    of a user's class), and so is state. The subclass made here takes everything over instead of constructing it.
    """
    kind: Any = type(optimizer)

    class Adopted(kind):
        def __init__(self, params: Any) -> None:
            self.__dict__.update(optimizer.__dict__)

    Adopted.__name__ = kind.__name__
    adopted = Adopted.__new__(Adopted)
    Adopted.__init__(adopted, None)
    return adopted


# Horovod fuses what is ready until a buffer of 128 MiB (HOROVOD_FUSION_THRESHOLD) is full.
_LEAST_GROUP_BYTES = 65 << 20


def _exchange_groups(parameters: Sequence[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Cut parameters, last first (the order in which gradients become ready), into groups that are exchanged whole.

    Left alone, Horovod fuses whatever gradients happen to be ready, and a number's place in the fused buffer decides in
    which order the ring adds up the ranks' parts: with 3 ranks or more, two runs differ in the last bits, and an
    optimizer that normalises (Adam) blows that up wherever a gradient is nothing but rounding. Groups always have the
    same content, and two of them never fit into one buffer.
    """
    groups: list[list[torch.nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(parameters):
        if size >= _LEAST_GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    if len(groups) > 1 and size < _LEAST_GROUP_BYTES:
        last = groups.pop()
        groups[-1].extend(last)
    return groups


def _always_whole_groups(distributed: Any) -> None:
    """Let a Horovod optimizer exchange groups also where this rank's backward did not reach all of a group.

    Horovod 0.28.1 then exchanges the members one by one, and waits forever for the ranks that exchange the group.
    """
    wait = distributed.synchronize

    def synchronize() -> None:
        for group in dict.fromkeys(distributed._p_to_group.values()):
            if group not in distributed._handles:
                for parameter in group:
                    distributed._handles.pop(parameter, None)
                distributed._handles[group] = distributed._grouped_allreduce_grad_async(group)
        wait()

    distributed.synchronize = synchronize


def _summing_optimizer(
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
