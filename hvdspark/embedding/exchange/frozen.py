"""What stands for the exchange of a group where its rows are files: no ranks, no training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hvdspark.embedding.files.frozen import FrozenGroup
from hvdspark.embedding.ids.bad_id import BadId, BadIdError
from hvdspark.embedding.ids.distinct import Unique
from hvdspark.embedding.ids.keys import KeySpace
from hvdspark.errors import ConfigurationError


@dataclass(frozen=True)
class FrozenLookup:
    """The rows of one forward pass; see `exchange.Lookup`."""

    distinct: Unique
    rows: Tensor


class FrozenExchange:
    """`GroupExchange.look_up` of rows that only this process asks for."""

    def __init__(self, group: FrozenGroup) -> None:
        self._group = group

    @property
    def key_space(self) -> KeySpace:
        return self._group.key_space

    def look_up(self, keys: Unique, *, train: bool, bad: BadId | None = None) -> FrozenLookup:
        """The rows of some keys. Not collective.

        Args:
            keys: valid, in any order and number.

        Raises:
            BadIdError: there is a bad id.
            ConfigurationError: `train`.
            CheckpointError: a file is missing or damaged.
        """
        if train:
            raise ConfigurationError(
                "tables of a fitted model are only read",
                where="ShardedEmbeddingCollection",
                hint="call module.eval(), or torch.no_grad(), to score; fit anew to train",
            )
        if bad is not None:
            raise BadIdError(bad)
        return FrozenLookup(keys, self._group.rows(keys.keys))
