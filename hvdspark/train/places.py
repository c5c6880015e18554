"""Where in training a checkpoint is, and which of them are kept. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Place = tuple[int, int]  # as `TrainProgress.place`


def name_of(place: Sequence[int]) -> str:
    """The directory of a place in training."""
    epochs, step = place
    return f"epoch-{epochs:05d}-step-{step:08d}" if step else f"epoch-{epochs - 1:05d}"


def place_of(name: str) -> Place | None:
    """The place that a directory is named after; None of what is no checkpoint."""
    found = re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", name)
    if found is None:
        return None
    return (int(found[1]), int(found[2])) if found[2] else (int(found[1]) + 1, 0)


def kept(complete: Mapping[Place, frozenset[str]], newest: Place, best: Place) -> set[Place]:
    """The places that stay when another one is complete.

    That are the newest; the one before, for if the newest is damaged; the last one that has no file in common with the
    newest, for if that is one of those; and the best epoch. What lies beyond the newest is of an attempt that was lost,
    or damaged: training has gone on from an earlier place.

    Args:
        complete: places that can be read, with the saves whose files they name.
        newest: just written.
        best: the end of the best epoch.
    """
    before = sorted((place for place in complete if place < newest), reverse=True)
    apart = [place for place in before if not complete[place] & complete[newest]]
    return {newest, *before[:1], *apart[:1], *(place for place in before if place == best)}
