"""An id that no table has: all ranks hear of it, and none looks anything up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BadId:
    """The first id that a rank cannot look up.

    Attributes:
        feature: number of the feature, the same on all ranks.
        id: what it is.
        rank: where it was met.
    """

    feature: int
    id: int
    rank: int


class BadIdError(Exception):
    """Some rank met a bad id; raised on all ranks, with the same `bad` (that of the lowest such rank)."""

    def __init__(self, bad: BadId) -> None:
        super().__init__(bad)
        self.bad = bad
