"""Ranks of an MPI launcher."""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hvdspark.collectives.dtypes import summable
from hvdspark.collectives.protocol import DistributedOptimizer, rows_by_rank
from hvdspark.collectives.summing import SummingOptimizer
from hvdspark.errors import CollectiveTimeoutError, ConfigurationError, DependencyError

# Open MPI's launcher; those of MPICH, Intel MPI and Cray, and Slurm's for any of them.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def launched_size(environment: Mapping[str, str]) -> int:
    """How many ranks the MPI launcher that started this process says it started; 1 where there was none. Pure."""
    return max((int(environment[name]) for name in _SIZE_VARIABLES if environment.get(name, "").isdigit()), default=1)


class MpiCollective:
    """Ranks started by an MPI launcher, e.g. `mpirun -n 4 python -m mpi4py train.py`, through mpi4py.

    What is exchanged goes from tensor memory to tensor memory, as bytes: nothing is pickled, every dtype is alike to
    MPI (bfloat16 too, which it does not know), and arithmetic is torch's. Counts and displacements are C ints in MPI;
    here they count rows, so that one rank may give and get up to 2^31 - 1 rows of any length at a time. Tensors that
    are on a GPU pass through host memory.

    MPI itself waits for ever for a rank that has died or turned elsewhere. mpirun ends all ranks as soon as a process
    dies by a signal or leaves without MPI_Finalize; `-m mpi4py` makes every uncaught exception such an end. For all
    other cases each wait here has a limit, and a process that gave up ends the whole launch when it exits, because MPI
    could no longer be finalised.

    Args:
        timeout_s: longest wait for the other ranks in one exchange. It has to cover the work that one rank does alone
            between two exchanges: unlike Horovod, MPI has no background thread that tells a slow rank from a dead one.

    Raises:
        DependencyError: mpi4py is missing, finds no MPI library, or finds another one than the launcher's.
    """

    def __init__(self, timeout_s: float = 600.0) -> None:
        launched = launched_size(os.environ)
        try:
            from mpi4py import MPI  # calls MPI_Init
        except (ImportError, RuntimeError) as error:  # RuntimeError: no libmpi
            raise DependencyError(
                f"mpi4py does not work ({error})",
                where=f"one of {launched} ranks of an MPI launcher",
                hint="pip install 'hvdspark[mpi]', and an MPI library (Debian: openmpi-bin)",
            ) from error
        self._mpi, self._comm, self._timeout_s = MPI, MPI.COMM_WORLD, timeout_s
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        if self.size != launched:
            # Every process would otherwise train alone, as the only rank, and nothing would say so.
            raise DependencyError(
                f"the MPI launcher started {launched} ranks, and mpi4py sees {self.size}",
                value=MPI.Get_library_version().splitlines()[0],
                hint="use the mpirun of the MPI library that mpi4py loads; MPI4PY_LIBMPI=/path/to/libmpi.so names it",
            )

    def allreduce_sum(self, tensor: Tensor, name: str) -> Tensor:
        # MPI_Allreduce adds in whatever order its algorithm for this size and number of ranks has. Here each rank adds
        # up its share of the elements in rank order, as ThreadedCollective does, so that results are the same bits
        # as with threads, on all ranks and in every run. As many bytes travel as in a ring.
        if tensor.is_sparse:
            return self._sum_sparse(tensor, name)
        wire, back = summable(tensor.detach())
        elements = wire.cpu().reshape(-1)
        shares = elements.new_zeros(self.size, -(-len(elements) // self.size))
        shares.view(-1)[: len(elements)] = elements
        one_each = [1] * self.size
        total = _sum_in_order(self._exchange(shares, one_each, range(self.size), one_each, name).unbind())
        totals = self._exchange(total[None], one_each, [0] * self.size, one_each, name)
        return back(totals.view(-1)[: len(elements)].view(wire.shape)).to(tensor.device)

    def broadcast(self, tensor: Tensor, root: int, name: str) -> Tensor:
        result = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        whole = self._row_type(result.nbytes)
        request = self._comm.Ibcast([self._memory(result), 1, whole], root=root)
        whole.Free()
        self._finish(request, name, result)
        return result.to(tensor.device)

    def alltoall(self, tensor: Tensor, splits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        rows_by_rank(tensor, splits, self.size)
        given = splits.tolist()
        received_splits = self._counts_for_me(splits, name)
        rows = tensor.detach().cpu().contiguous()
        received = self._exchange(rows, given, _firsts(given), received_splits.tolist(), name)
        return received.to(tensor.device), received_splits

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
        if compression != "none":
            raise ConfigurationError(
                "MPI ranks exchange gradients as they are",
                value=compression,
                where="compression",
                hint="'none', or run under Horovod",
            )
        return SummingOptimizer(optimizer, named_parameters, self)

    def _sum_sparse(self, tensor: Tensor, name: str) -> Tensor:
        counts = self._counts_for_me(torch.full((self.size,), tensor._nnz(), dtype=torch.int32), name).tolist()
        tensor = tensor.detach()
        indices, values = (
            self._exchange(rows.cpu().contiguous(), [len(rows)] * self.size, [0] * self.size, counts, name).split(
                counts
            )
            for rows in (tensor._indices().t(), tensor._values())
        )
        # Index by index the entries are added in the order in which they stand here: the ranks', as for dense tensors.
        parts = [torch.sparse_coo_tensor(i.t(), v, tensor.shape) for i, v in zip(indices, values, strict=True)]
        return _sum_in_order(parts).to(tensor.device)

    def _counts_for_me(self, counts: Tensor, name: str) -> Tensor:
        """What every rank has for this one; int32 [size]."""
        given, received = counts.contiguous(), torch.empty_like(counts, memory_format=torch.contiguous_format)
        self._finish(self._comm.Ialltoall(self._memory(given), self._memory(received)), name, given, received)
        return received

    def _exchange(
        self, rows: Tensor, counts: Sequence[int], firsts: Sequence[int], received_counts: Sequence[int], name: str
    ) -> Tensor:
        """counts[r] rows from firsts[r] on go to rank r; what ranks give to this one, in their order.

        `rows` is contiguous, on the CPU; what goes to different ranks may overlap.
        """
        received = rows.new_empty(sum(received_counts), *rows.shape[1:])
        row = self._row_type(math.prod(rows.shape[1:]) * rows.element_size())
        request = self._comm.Ialltoallv(
            [self._memory(rows), counts, firsts, row],
            [self._memory(received), received_counts, _firsts(received_counts), row],
        )
        row.Free()  # once the exchange is over
        self._finish(request, name, rows, received)
        return received

    def _row_type(self, row_bytes: int) -> Any:
        return self._mpi.BYTE.Create_contiguous(row_bytes).Commit()

    def _memory(self, tensor: Tensor) -> Any:
        return self._mpi.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes)

    def _finish(self, request: Any, name: str, *tensors: Tensor) -> None:
        """Wait until an exchange is over. `tensors` is the memory that it reads and writes."""
        deadline = time.monotonic() + self._timeout_s
        try:
            while not request.Test():
                if time.monotonic() > deadline:
                    raise CollectiveTimeoutError(
                        f"not all ranks came to the exchange {name!r} within {self._timeout_s:g} s",
                        where=f"rank {self.rank} of {self.size}",
                        hint="look for the first error that another rank printed; all ranks must call the same "
                        "collectives, as often, in the same order",
                    )
                os.sched_yield()  # ranks may share a core
        except BaseException:
            # MPI may write into the tensors at any time from now on, so something has to hold on to them; and
            # MPI_Finalize, which mpi4py calls at exit, would wait for ever.
            atexit.register(_abort, self._comm, request, tensors)
            raise


def _abort(comm: Any, request: Any, tensors: tuple[Tensor, ...]) -> None:
    comm.Abort(1)


def _firsts(counts: Sequence[int]) -> list[int]:
    return [0, *accumulate(counts[:-1])]


def _sum_in_order(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
