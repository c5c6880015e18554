"""How many ranks a generation may have, and how many it gets. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hvdspark.errors import ConfigurationError


@dataclass(frozen=True)
class WorldSizes:
    """The fewest and the most ranks of a generation: 1 <= least <= most."""

    least: int
    most: int

    def fitting(self, slots: int | None) -> int | None:
        """Ranks of a generation that finds so many free slots; None where these are too few.

        Args:
            slots: None where nobody can say: then all that are wanted.
        """
        if slots is None:
            return self.most
        return min(slots, self.most) if slots >= self.least else None


def check_world_size(ranks: int, where: str = "num_workers") -> None:
    """Raise ConfigurationError where `ranks` is not a positive integer."""
    if isinstance(ranks, bool) or not isinstance(ranks, int) or ranks < 1:
        raise ConfigurationError("not a positive number of ranks", value=ranks, where=where, hint="1 or more")


def world_sizes(num_workers: int, min_workers: int | None, max_workers: int | None) -> WorldSizes:
    """The bounds, of which `num_workers` is each that is not given.

    Raises:
        ConfigurationError: one is no positive whole number, or they contradict each other.
    """
    check_world_size(num_workers)
    for name, value in (("min_workers", min_workers), ("max_workers", max_workers)):
        if value is not None:
            check_world_size(value, name)
    least = num_workers if min_workers is None else min_workers
    most = num_workers if max_workers is None else max_workers
    if least > most:
        where = "num_workers and max_workers" if min_workers is None else "min_workers and max_workers"
        if max_workers is None:
            where = "min_workers and num_workers"
        raise ConfigurationError(
            "the fewest ranks are more than the most", value=f"{least} and {most}", where=where, hint="lower the first"
        )
    return WorldSizes(least, most)
