"""The gradients of a module's Parameters around an exchange. Sharded rows have theirs to themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hvdspark.errors import ConfigurationError
from hvdspark.train.gradients import sparse_rows, squared_norm, values_of
from hvdspark.train.optimizer import sparse_parameters
from hvdspark.train.run import Run


class DenseGradients:
    """Gradients of the parameters that an optimizer trains on this rank.

    Attributes:
        parameters: those, in the optimizer's order.

    Raises:
        ConfigurationError: sparse gradients cannot be compressed.
    """

    def __init__(self, run: Run, optimizer: torch.optim.Optimizer) -> None:
        self._run, self._optimizer = run, optimizer
        self.parameters = self._to_train()
        self._sparse = {id(parameter) for parameter in self.parameters} & sparse_parameters(run.module)
        if self._sparse and run.spec.compression != "none":
            raise ConfigurationError(
                "fp16 compression cannot be used with sparse gradients",
                value=run.spec.compression,
                where="compression",
                hint='use compression="none" or Embedding(sparse=False)',
            )

    @property
    def present(self) -> list[Tensor]:
        """The gradients that there are."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def fill_missing(self, *, diverged: bool) -> set[int]:
        """Give every parameter a gradient: 0 where this rank's rows did not reach it, NaN where its loss diverged.
        Returns the id() of the parameters that were not reached.

        A diverged rank thereby tells all others through the exchange that happens anyway. Its last backward pass was
        skipped, so no exchange is under way yet. Same strides as the parameter, since Horovod adds raw memory.
        """
        missing = {id(parameter) for parameter in self.parameters if parameter.grad is None}
        for parameter in self.parameters:
            if id(parameter) in missing or diverged:
                value = math.nan if diverged else 0.0
                if id(parameter) in self._sparse:
                    parameter.grad = sparse_rows(parameter, 1 if diverged else 0, value)
                else:
                    parameter.grad = torch.full_like(parameter, value)
        return missing

    def drop_unused(self, missing: set[int]) -> None:
        """Collective. Take back the zeros of parameters that no rank's rows reached, so that the optimizer leaves them
        alone, as torch does: decay and momentum move whatever has a gradient.

        All ranks come here together, because their sums are the same; zeros alone do not tell who was reached.
        """
        zero = [p for p in self.parameters if p.grad is not None and not values_of(p.grad).count_nonzero()]
        if zero:
            reached = torch.tensor([float(id(parameter) not in missing) for parameter in zero])
            counts = self._run.collective.allreduce_sum(reached, "train/reached").tolist()
            for parameter, ranks in zip(zero, counts, strict=True):
                if not ranks:
                    parameter.grad = None

    def clip(self, max_norm: float) -> float:
        """Collective if there are sharded rows, of which each rank has its own: scale all gradients together so that
        their L2 norm is at most `max_norm`; returns the norm before, the same on every rank."""
        gradients = self.present
        sharded = [part for collection in self._run.tables for part in collection.reduced_gradients]
        square = squared_norm(gradients)
        if self._run.tables:
            total = torch.tensor([squared_norm(sharded)], dtype=torch.float64)
            square += self._run.collective.allreduce_sum(total, "train/clip").item()
        norm = math.sqrt(square)
        if norm > max_norm:
            for gradient in (*gradients, *sharded):
                gradient.mul_(max_norm / norm)
        return norm

    def check_parameters(self, where: str) -> None:
        """Raise ConfigurationError where other parameters are trained than in the beginning: their gradients would not
        be exchanged."""
        if [id(p) for p in self._to_train()] != [id(p) for p in self.parameters]:
            raise ConfigurationError(
                "requires_grad changed during training",
                where=where,
                hint="freeze parameters before fit; a learning rate of 0 in a callback freezes them later",
            )

    def _to_train(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"] if p.requires_grad]
