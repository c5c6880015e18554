"""Ranks of Horovod."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives.dtypes import ADDED_UP, MOVED, bits, summable
from hvdspark.collectives.protocol import DistributedOptimizer, rows_by_rank
from hvdspark.collectives.summing import SummingOptimizer


class HorovodCollective:
    """Horovod, already initialised in this process (ring-AllReduce over Gloo, MPI or NCCL)."""

    def __init__(self) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        if tensor.is_sparse:
            return self._sum_sparse(tensor, name)
        wire, back = summable(tensor)
        return back(self._result(self._hvd.allreduce_async(wire.contiguous(), name=name, op=self._hvd.Sum)))

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        if tensor.dtype in MOVED:
            return self._result(self._hvd.broadcast_async(tensor.contiguous(), root_rank=root, name=name))
        own = tensor.detach().contiguous()
        received: Tensor = self._result(self._hvd.broadcast_async(bits(own), root_rank=root, name=name))
        return received.view(own.dtype).view(own.shape)

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        return self.alltoall_async(tensor, splits, name)()

    def alltoall_async(self, tensor: Tensor, splits: Tensor, name: str) -> Callable[[], tuple[Tensor, Tensor]]:
        rows_by_rank(tensor, splits, self.size)
        tensor = tensor.detach().contiguous()
        # Gloo knows no bfloat16 (GetAlgorithmsForType in Horovod's gloo_operations.cc); the bits travel as int16.
        wire = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        handle = self._hvd.alltoall_async(wire, splits=splits, name=name)

        def wait() -> tuple[Tensor, Tensor]:
            received, received_splits = self._result(handle)
            return received.view(tensor.dtype), received_splits.cpu()

        return wait

    def broadcast_parameters(self, tensors: dict[str, Tensor], root: int = 0) -> None:
        travelling, copies = {}, []
        for name, tensor in tensors.items():
            own = tensor.detach().contiguous()  # the same memory, unless that is not in one piece
            travelling[name] = own if tensor.dtype in MOVED else bits(own)
            if not tensor.is_contiguous():
                copies.append((tensor, own))
        handles = [
            self._hvd.broadcast_async_(tensor, root_rank=root, name=name) for name, tensor in sorted(travelling.items())
        ]
        for handle in handles:
            self._result(handle)
        with torch.no_grad():
            for tensor, own in copies:
                tensor.copy_(own)

    def _sum_sparse(self, tensor: Tensor, name: str) -> Tensor:
        wire, back = summable(tensor._values())
        carried = torch.sparse_coo_tensor(
            tensor._indices(), wire, (*tensor.shape[: tensor.sparse_dim()], *wire.shape[1:])
        )
        total = _sum_sparse_async(self._hvd, carried, name)()
        return torch.sparse_coo_tensor(total._indices(), back(total._values()), tensor.shape)

    def _result(self, handle: int) -> Any:
        _sleep_until_done(self._hvd, [handle])
        return self._hvd.synchronize(handle)

    def distributed_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        compression: str = "none",
        accumulation_steps: int = 1,
        sparse_gradients: bool = False,
    ) -> DistributedOptimizer:
        names = {parameter: name for name, parameter in named_parameters}
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if compression != "none" or any(parameter.dtype not in ADDED_UP for parameter in trained):
            # Horovod's compression loses what is too small for float16, and its hooks know no other dtypes. What is
            # exchanged after the backward pass costs the overlap with it.
            return SummingOptimizer(
                optimizer, ((name, parameter) for parameter, name in names.items()), self, compression
            )
        # The constructor lets ranks compare their parameters, and spins until the last one is there.
        self.allreduce_sum(torch.zeros(1), "gradients")
        distributed = self._hvd.DistributedOptimizer(
            _adoptable(optimizer),
            named_parameters=[(f"gradients/{name}", parameter) for parameter, name in names.items()],
            backward_passes_per_step=accumulation_steps,
            op=self._hvd.Sum,
            groups=None if sparse_gradients else _exchange_groups(trained),
        )
        # torch wraps `step` to run its hooks. Wrapping Horovod's `step` too would run them twice.
        type(distributed).step.hooked = True
        if sparse_gradients:
            _exchanges_asleep(distributed, self._hvd)
        else:
            _always_whole_groups(distributed, self._hvd)
        return _HorovodOptimizer(distributed)


class _HorovodOptimizer:
    """A `DistributedOptimizer` whose gradients are exchanged while the backward pass goes on.

    Args:
        optimizer: Horovod's own.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer: torch.optim.Optimizer = optimizer
        self._distributed = optimizer
        optimizer.register_step_post_hook(self._stepped)

    def synchronize(self) -> None:
        self._distributed.synchronize()
        # The next step is on these sums, whether it is told of here or as torch's; `skip_synchronize` is only for here.
        self._distributed._should_synchronize = False

    def step(self) -> None:
        self._distributed.step()

    def _stepped(self, *_: object) -> None:
        self._distributed._should_synchronize = True


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


def _always_whole_groups(distributed: Any, hvd: Any) -> None:
    """Let a Horovod optimizer exchange groups also where this rank's backward did not reach all of a group.

    Horovod 0.28.1 then exchanges the members one by one, and waits forever for the ranks that exchange the group.
    """
    exchange_missing_and_wait = distributed.synchronize

    def synchronize() -> None:
        for group in dict.fromkeys(distributed._p_to_group.values()):
            if group not in distributed._handles:
                for parameter in group:
                    distributed._handles.pop(parameter, None)
                distributed._handles[group] = distributed._grouped_allreduce_grad_async(group)
        _sleep_until_done(hvd, [handle for handle, _ in distributed._handles.values()])
        exchange_missing_and_wait()

    distributed.synchronize = synchronize


def _exchanges_asleep(distributed: Any, hvd: Any) -> None:
    """Let a Horovod optimizer without groups sleep, not spin, while its gradients, dense or sparse, are exchanged."""
    exchange_missing_and_wait = distributed.synchronize

    def synchronize() -> None:
        # All before the first wait: what one rank has missed may be what another waits for.
        for parameter in distributed._requires_update:
            handle, _ = distributed._handles.get(parameter, (None, None))
            if handle is None:
                distributed._handles[parameter] = distributed._allreduce_grad_async(parameter)
        handles = [handle for handle, _ in distributed._handles.values()]
        _sleep_until_done(hvd, [handle for handle in handles if not callable(handle)])
        exchange_missing_and_wait()

    distributed.synchronize = synchronize
    distributed._sparse_allreduce_grad_async = lambda parameter, name: (
        _sum_sparse_async(hvd, parameter.grad, name),
        None,
    )


def _sum_sparse_async(hvd: Any, tensor: Tensor, name: str) -> Callable[[], Tensor]:
    """Begin what `hvd.sparse_allreduce_async` does; its own wait spins."""
    # Put one behind the other by their first dimension, which has to be that of the rows.
    indices = hvd.allgather_async(tensor._indices().transpose(0, 1).contiguous(), name=f"{name}.indices")
    values = hvd.allgather_async(tensor._values(), name=f"{name}.values")

    def wait() -> Tensor:
        _sleep_until_done(hvd, [indices, values])
        all_values, all_indices = hvd.synchronize(values), hvd.synchronize(indices)
        return torch.sparse_coo_tensor(all_indices.transpose(0, 1), all_values, tensor.shape)

    return wait


# Horovod's own cycle is 1 ms (HOROVOD_CYCLE_TIME): nothing is done sooner than that.
_POLL_INTERVAL_S = 50e-6


def _sleep_until_done(hvd: Any, handles: Iterable[int]) -> None:
    """Wait for operations of Horovod without burning the CPU that the other ranks of the host need.

    `hvd.synchronize` spins on sched_yield until an operation is done (`WaitAndClear` in horovod/torch/mpi_ops_v2.cc).
    Where ranks share cores, that spinning is what the others wait for, most of it in the kernel.
    """
    for handle in handles:
        while not hvd.poll(handle):
            time.sleep(_POLL_INTERVAL_S)
