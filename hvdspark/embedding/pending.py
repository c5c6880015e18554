"""Gradients on their way to the rows: of the forward passes since the last update."""

from __future__ import annotations

from collections.abc import Sequence

from hvdspark.embedding.exchange import GroupExchange, Lookup, Reduced
from hvdspark.errors import ConfigurationError

# Forward passes that may wait for one update; more is a training loop that never calls it.
_MAX_PASSES = 1024


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
        """Collective. Gradients of all passes to their owners; returns `diverged`."""
        if self.passes:
            passes, self.passes = self.passes, []
            self.reduced = [
                exchange.reduce([lookups[number] for lookups in passes]) for number, exchange in enumerate(exchanges)
            ]
        return self.diverged

    @property
    def diverged(self) -> tuple[int, ...]:
        """The ranks that have a gradient that is not finite."""
        return tuple(sorted({rank for reduced in self.reduced for rank in reduced.diverged}))
