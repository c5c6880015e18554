"""What can start ranks: tasks of a barrier stage of Spark (barrier.py), or processes of this host (same_host.py).

A launcher only decides where ranks run. How a rank is started, watched and ended (task.py), what one attempt is
(generation.py) and when there is another one (supervisor.py) is the same for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hvdspark.launch.budget import MemoryTerms
from hvdspark.launch.line import Waiting
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.world_sizes import WorldSizes

STALL_TIMEOUT_S = 60.0
Program = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function, its arguments and its keyword arguments."""


@dataclass(frozen=True)
class LaunchSpec:
    """What every task of one generation is given. Plain data.

    Attributes:
        program: a pickled `Program`.
        world_size: number of ranks of this generation.
        secret: of this generation; for the rendezvous and the channel.
        channel: (host, port) of the driver's listener, or None.
        environment: extra variables for the ranks.
        start_timeout_s: limit for all ranks to be ready for training, from the start of the tasks on.
        stall_timeout_s: how long a rank or task may be silent, or all ranks may wait for each other.
        memory: what the launcher knows of the memory of each rank.
        elastic: other generations may have another number of ranks.
    """

    program: bytes = field(repr=False)
    world_size: int
    secret: str = field(repr=False)
    generation: int
    device: str
    store_uri: str | None
    channel: tuple[str, int] | None
    environment: Mapping[str, str]
    start_timeout_s: float
    stall_timeout_s: float = STALL_TIMEOUT_S
    memory: MemoryTerms = field(default_factory=MemoryTerms)
    elastic: bool = False


@dataclass(frozen=True)
class DriverAddress:
    """Where the driver listens to ranks.

    Attributes:
        bind: address to listen at.
        reachable: address that the hosts of the ranks reach.
        port: the first of the ports that are tried; 0 for any that is free.
    """

    bind: str
    reachable: str
    port: int


@dataclass(frozen=True)
class Located:
    """A rank and the name of its host, as its task said over the channel.

    Attributes:
        partition: of the task, where that says it.
    """

    rank: int
    host: str
    partition: int | None = None


@dataclass(frozen=True)
class Heard:
    """What tasks have said over the channel.

    Attributes:
        tasks: that have started.
        lost: the first of which the connection was cut, and not made again.
    """

    tasks: Sequence[Located] = ()
    lost: Located | None = None


@dataclass(frozen=True)
class Slots:
    """Task slots that a gang may have.

    Attributes:
        total: of the application, but those of other gangs of this process.
        free: of these without what runs other tasks now, as far as is known.
    """

    total: int
    free: int


class Seat(Protocol):
    """The place of a gang among those of this process, for as long as it has generations."""

    def slots(self, running: int = 0) -> Slots | None:
        """What this gang could have now; None where nobody can say.

        Args:
            running: ranks of its own that run; their slots count as free.
        """

    def hold(self, ranks: int) -> None:
        """Have so many slots from now on, that others of this process do not get."""


class Launcher(Protocol):
    """Starts the ranks of any number of generations."""

    def check(self, world_size: int, device: str, start_timeout_s: float) -> None:
        """Refuse what cannot work with at least so many ranks before anything is started.

        Raises:
            ConfigurationError, ClusterError, DependencyError, NotEnoughSlotsError, StartTimeoutError.
        """

    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> contextlib.AbstractContextManager[Seat]:
        """A context that is entered when so many ranks fit beside those that this process runs already, and in which
        these have their slots: as many as there are, up to the most. `on_wait` is told, in the same thread, while it
        has to wait.
        """

    def driver_address(self) -> DriverAddress | None:
        """For the channel; None where ranks cannot reach this process. Raises ConfigurationError."""

    def pickled(self, program: Program) -> bytes:
        """A program as ranks read it. Called before its first job, in the same thread.

        Raises:
            ConfigurationError: it has something that does not reach ranks.
        """

    def job(self, spec: LaunchSpec) -> Job:
        """One task for each rank, nothing of which has been started yet."""


class Job(Protocol):
    """The tasks of one generation. `run` is called once; the others at any time and from any thread."""

    def run(self) -> dict[int, Outcome]:
        """Start the ranks and wait until all have ended; how they did, by rank. Nothing of them is left afterwards,
        whatever leaves this function.

        Raises:
            HvdSparkError: the job failed, not (only) a rank of it.
            Exception: what the launcher below says, for `explain`.
        """

    def has_begun(self) -> bool | None:
        """Whether a task runs or has run; None where that is not known."""

    def leaving(self) -> Sequence[str]:
        """Names of executors of the ranks that are about to be taken away; none where nobody can say. May raise."""

    def cancel(self) -> None:
        """End the tasks and their ranks. Never fails."""

    def explain(self, error: Exception, heard: Heard) -> Exception:
        """What an exception of `run` means for the ranks."""
