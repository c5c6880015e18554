"""How the tables' files of a checkpoint go on from those of the one before: with all rows, or what has changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hvdspark.artifact.tables import collections_of
from hvdspark.collectives import Collective
from hvdspark.collectives.agreement import gathered
from hvdspark.train.snapshot import changed_bytes

# Files of changes that a reader has to go through, and how large they may be beside those of all rows.
_MOST_CHANGES, _SHARE_OF_CHANGES = 16, 0.5


@dataclass
class Chain:
    """The files that a checkpoint names.

    Attributes:
        delta: number of the newest changes; 0: there are none. The same on every rank.
        base, changes: bytes of this rank's rows, whole, and of all changes since.
        alone: no other checkpoint of this generation has all rows. The next one then has them, too: of two checkpoints
            that name a file, none is left when it is damaged.
        tables: on rank 0, of the manifest.
    """

    delta: int
    base: int
    changes: int
    alone: bool = False
    tables: list[dict[str, Any]] = field(default_factory=list)


def next_delta(chain: Chain | None, module: nn.Module, collective: Collective) -> int:
    """Collective where there are tables. The number of the changes that are written next.

    0 where all rows are written: there is nothing to go on from, or changes have grown to half of it.
    """
    if chain is None or chain.alone or not collections_of(module):
        return 0
    own = torch.tensor([chain.base, chain.changes + changed_bytes(module)], dtype=torch.float64)
    base, changes = gathered(collective, own, "checkpoint/changes").sum(0).tolist()
    return chain.delta + 1 if chain.delta < _MOST_CHANGES and changes <= _SHARE_OF_CHANGES * base else 0


def following(chain: Chain | None, delta: int, size: int) -> Chain:
    """What the save of changes of this number makes of a chain, where this rank writes so many bytes."""
    if chain is None or not delta:
        return Chain(0, size, 0, alone=chain is None)
    return Chain(delta, chain.base, chain.changes + size)
