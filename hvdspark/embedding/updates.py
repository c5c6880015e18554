"""What a training loop does with sharded rows after a backward pass."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hvdspark.collectives import Collective
from hvdspark.embedding.exchange.trained import GroupExchange, Lookup, Reduced
from hvdspark.embedding.graphs import outside_graphs
from hvdspark.embedding.lineage import RowsApart
from hvdspark.errors import ConfigurationError, TrainingDivergedError

if TYPE_CHECKING:
    from typing_extensions import Self

_GradScaler: Any = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler

# Forward passes that may wait for one update; more is a training loop that never calls it.
_MAX_PASSES = 1024
# GradScaler.step is four calls above the hook of an optimizer that is not wrapped.
_CALLERS = 16


class Pending:
    """What waits for the next update.

    Attributes:
        passes: the lookups of each training pass since the last update, one for each group.
        reduced: for each group what `synchronize` brought; empty before it.
    """

    def __init__(self) -> None:
        self.passes: list[list[Lookup]] = []
        self.reduced: list[Reduced] = []

    def remember(self, lookups: list[Lookup]) -> None:
        """One more training pass. ConfigurationError where no update follows the passes."""
        if self.reduced:
            raise ConfigurationError(
                "a training forward pass between synchronize() and apply_gradients()",
                where="ShardedEmbeddingCollection",
                hint="its gradients would take the place of those that wait: call apply_gradients() first",
            )
        if len(self.passes) >= _MAX_PASSES:
            raise ConfigurationError(
                "too many forward passes without an update",
                value=len(self.passes),
                where="ShardedEmbeddingCollection",
                hint="call apply_gradients() after each backward pass, or use eval() or no_grad() for other passes",
            )
        self.passes.append(lookups)

    def synchronize(self, exchanges: Sequence[GroupExchange]) -> tuple[int, ...]:
        """Collective. Gradients of all passes, of which there are some, to their owners; returns `diverged`."""
        passes, self.passes = self.passes, []
        self.reduced = [
            exchange.reduce([lookups[number] for lookups in passes]) for number, exchange in enumerate(exchanges)
        ]
        return self.diverged

    @property
    def diverged(self) -> tuple[int, ...]:
        """The ranks that have a gradient that is not finite."""
        return tuple(sorted({rank for reduced in self.reduced for rank in reduced.diverged}))


class UpdatedRows(RowsApart):
    """A module whose rows, which are no Parameters, are updated by the gradients of its forward passes.

    Attributes:
        name: of its collectives.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._pending = Pending()

    def _bound(self) -> list[GroupExchange]:
        """The exchange of each group of rows."""
        raise NotImplementedError

    def _ranks(self) -> Collective:
        """Those that share the rows."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pending": Pending()}

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Of replicated tables. ConfigurationError for False where there are sharded rows that can be trained."""
        if not requires_grad and self._has_rows_apart() and not self._are_rows_mapped():
            raise ConfigurationError(
                "sharded rows are no Parameters, and requires_grad does not freeze them",
                where=type(self).__name__,
                hint="eval() of the collection does, until train() is called again; and its replicated tables are "
                "Parameters: collection.replicated.requires_grad_(False)",
            )
        return super().requires_grad_(requires_grad)

    @property
    def steps(self) -> int:
        """Updates so far, by `apply_gradients`."""
        return self._lineage.steps

    @outside_graphs
    def synchronize(self) -> tuple[int, ...]:
        """Collective. Bring the gradients of all forward passes since the last update to the ranks that own the rows.

        `apply_gradients` does it where it was not done. Comes before it where `reduced_gradients` are to be looked at
        or scaled in between.

        Returns: the ranks that have a gradient that is not finite, the same on every rank. If there are any, nothing
            can be applied.
        """
        return self._pending.synchronize(self._bound()) if self._pending.passes else self._pending.diverged

    @property
    def reduced_gradients(self) -> list[Tensor]:
        """What `synchronize` brought, summed over the ranks, for the rows that this rank owns: float32 [G, D] each."""
        return [reduced.gradients for reduced in self._pending.reduced]

    @outside_graphs
    def apply_gradients(self, learning_rate_factor: float = 1.0, *, scale: float = 1.0) -> None:
        """Collective. Update the sharded rows with the gradients of all forward passes since the last call.

        One call of the optimizer for each row, whatever the number of passes, lookups and ranks. Does nothing when no
        pass came before. Rows that no rank has a gradient for are left as they are.

        Args:
            learning_rate_factor: of all tables' learning rates, in this step, >= 0: for schedules.
            scale: that the loss was multiplied by, > 0: gradients are divided by it. `step_scaled` knows it.

        Raises:
            TrainingDivergedError: a gradient is NaN or infinite; on every rank, and no row has changed.
        """
        diverged = self.synchronize()
        if diverged:
            self.discard_gradients()
            raise TrainingDivergedError(
                "a gradient of an embedding became NaN or infinite",
                where=f"{self.name}, ranks {', '.join(map(str, diverged))}, step {self._lineage.steps + 1}",
                hint="lower the learning rates, and look for NaN among the inputs",
            )
        if scale != 1.0:
            for gradients in self.reduced_gradients:
                gradients.div_(scale)
        if self._pending.reduced:
            reduced, self._pending = self._pending.reduced, Pending()
            self._lineage.steps += 1
            for exchange, part in zip(self._bound(), reduced, strict=True):
                exchange.update(part, self._lineage.steps, learning_rate_factor)

    def discard_gradients(self) -> None:
        """Forget the forward passes since the last `apply_gradients`: the counterpart of `zero_grad`. On every rank."""
        self._pending = Pending()

    def step_with(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call `apply_gradients` after each `optimizer.step()`, until the handle is removed.

        Not with a GradScaler: a step that it makes raises ConfigurationError. See `step_scaled`.
        """

        @outside_graphs
        def apply(*_: Any) -> None:
            if _is_scaled(sys._getframe()):
                raise ConfigurationError(
                    "the gradients of sharded rows are scaled, and a GradScaler does not know them",
                    where="step_with",
                    hint="without step_with(), hvdspark.embedding.step_scaled(module, optimizer, scaler) does "
                    "scaler.step(), apply_gradients() and scaler.update()",
                )
            self.apply_gradients()

        return optimizer.register_step_post_hook(apply)


def step_scaled(
    module: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, learning_rate_factor: float = 1.0
) -> bool:
    """Collective. In place of `scaler.step(optimizer)` and `scaler.update()`, and of `apply_gradients` of all tables.

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)          # only to look at or clip the dense gradients
        step_scaled(module, optimizer, scaler)
        optimizer.zero_grad()

    Dense layers and sharded rows take a step, with gradients that are unscaled. Or neither does, on any rank, where a
    gradient of one of them overflowed, and the scale goes down.

    Args:
        module: with its collections.
        optimizer: of the dense layers, whose gradients are the same on every rank by now.
        learning_rate_factor: as of `apply_gradients`.

    Returns: whether the step was taken.

    Raises:
        TrainingDivergedError: a gradient of a sharded row is not finite, and the scaler is not enabled.
    """
    collections = [part for part in module.modules() if isinstance(part, UpdatedRows)]
    scale, taken = scaler.get_scale(), [False]
    diverged = [collection.synchronize() for collection in collections] if scaler.is_enabled() else []
    overflowed = any(diverged)
    if not overflowed:
        handle = optimizer.register_step_post_hook(lambda *_: taken.append(True))
        try:
            scaler.step(optimizer)
        finally:
            handle.remove()
    missed = torch.tensor([0.0 if taken[-1] else 1.0])
    if collections:
        missed = collections[0]._ranks().allreduce_sum(missed, f"{collections[0].name}/scaled")
    for collection in collections:
        if bool(missed):
            collection.discard_gradients()
        else:
            collection.apply_gradients(learning_rate_factor, scale=scale)
    # Where it was the sharded rows, the scaler has not seen it.
    scaler.update(scale * scaler.get_backoff_factor() if overflowed else None)
    return not bool(missed)


def _is_scaled(frame: FrameType | None) -> bool:
    """Whether a GradScaler is among the callers: an optimizer that it steps is told nothing of it."""
    for _ in range(_CALLERS):
        if frame is None:
            return False
        caller = frame.f_locals.get("self")
        if isinstance(caller, _GradScaler) and caller.is_enabled():
            return True
        frame = frame.f_back
    return False
