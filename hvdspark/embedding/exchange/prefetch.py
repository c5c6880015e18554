"""The lookup of a forward pass that has begun before the pass itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hvdspark.embedding.exchange.trained import GroupExchange, Lookup
from hvdspark.embedding.ids.bad_id import BadId, BadIdError
from hvdspark.embedding.ids.distinct import Unique
from hvdspark.errors import ConfigurationError


class Prefetched:
    """Collective: begins one alltoall for each group, or two.

    Args:
        inputs: of the pass, by feature.
        train: whether it will be a training one.
        exchanges: of the groups.
        keys: for each of them, see `GroupExchange.ask`.
        stale_rows: also ask for the rows, as they are now.

    Raises:
        BadIdError: on every rank, where rows are asked for; else `take` raises it.
    """

    def __init__(
        self,
        inputs: Mapping[str, Any],
        train: bool,
        exchanges: Sequence[GroupExchange],
        keys: Sequence[Unique],
        bad: BadId | None,
        *,
        stale_rows: bool,
    ) -> None:
        self._inputs, self._train, self._exchanges = dict(inputs), train, exchanges
        self._asked = [exchange.ask(some, train=train, bad=bad) for exchange, some in zip(exchanges, keys, strict=True)]
        self._answers = self._answer() if stale_rows else None

    def take(self, inputs: Mapping[str, Any], train: bool) -> list[Lookup]:
        """Collective, as the lookup is: the rows for exactly the inputs that were prefetched.

        Raises:
            ConfigurationError: these are others, or the pass is of the other kind.
            BadIdError: on every rank.
        """
        others = [feature for feature, value in inputs.items() if self._inputs.get(feature) is not value]
        if others or train != self._train:
            raise ConfigurationError(
                "the forward pass is not the one that was prefetched",
                value=others or f"training: {train}, when prefetched: {self._train}",
                where="ShardedEmbeddingCollection",
                hint="call it next with the very tensors that prefetch() was given",
            )
        return [wait() for wait in self._answers or self._answer()]

    def _answer(self) -> list[Any]:
        failed: BadIdError | None = None
        asked = []
        for wait in self._asked:  # all of them: a call that nobody waits for blocks the next one of its name
            try:
                asked.append(wait())
            except BadIdError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return [exchange.answer(keys, train=self._train) for exchange, keys in zip(self._exchanges, asked, strict=True)]
