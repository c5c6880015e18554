"""What user code can ask about the rank it runs in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hvdspark.errors import ClusterError
from hvdspark.launch.preemption import Notice
from hvdspark.specs import World

if TYPE_CHECKING:
    from hvdspark.collectives import Collective
    from hvdspark.store import Store


@dataclass(frozen=True)
class RankContext:
    """The rank that the calling code runs in.

    Attributes:
        world: full placement; `rank`, `size`, `local_rank` and `local_size` are its shorthands.
        device: "cpu" or "cuda" (the current CUDA device is already set).
        generation: 0, then 1 more after each restart of the gang by the supervisor.
        collective: what this rank and the others can do together.
        store: the store named in `hvdspark.run(..., store_uri=...)`, or None.
        scratch: a directory that ranks of later generations find again where they run in the same executor, and that
            goes with it. None where the number of ranks is fixed, or there is none.
    """

    world: World
    device: str
    generation: int
    collective: Collective
    store: Store | None
    _send: Callable[[dict[str, Any]], None] = field(repr=False, default=lambda event: None)
    _notice: Notice = field(repr=False, default_factory=Notice)
    _reached: Callable[[int], None] = field(repr=False, default=lambda step: None)
    scratch: str | None = None

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def local_rank(self) -> int:
        return self.world.local_rank

    @property
    def local_size(self) -> int:
        return self.world.local_size

    def report(self, event: dict[str, Any]) -> None:
        """Send a small JSON-able event to the driver. Best effort: never fails and never waits for the driver."""
        self._send({**event, "rank": self.rank})

    def reached(self, step: int) -> None:
        """Say which step, a number from 0, this rank begins. Costs nothing worth mentioning.

        The driver names the step that a rank was in when it died; a program whose rank dies in the same one twice, with
        no new checkpoint in between, is not started a third time.
        """
        self._reached(step)

    def preempted(self) -> bool:
        """Whether this rank was asked to make room, by the driver or by SIGTERM. Others may not know it yet.

        Ranks that agree on it save what they have done, and raise `hvdspark.errors.PreemptedError`: then the program is
        started again where there is room, which counts as no failure. From the first call on, SIGTERM does not end this
        process, because it will stop by itself.
        """
        self._notice.heeded = True
        return bool(self._notice.reason)

    @property
    def preempted_because(self) -> str:
        """Why this rank was asked to make room, in a few words; "" where it was not."""
        return self._notice.reason


_current: RankContext | None = None


def context() -> RankContext:
    """The context of the rank this code runs in. Raises ClusterError outside `hvdspark.run`."""
    if _current is None:
        raise ClusterError(
            "there is no rank here", where="hvdspark.context()", hint="call it inside a function given to hvdspark.run"
        )
    return _current


def enter(value: RankContext) -> None:
    """Set the context of this process; a rank process has one for its whole life."""
    global _current
    _current = value
