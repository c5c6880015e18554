"""What happens to the ranks of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from hvdspark.events.base import FitEvent


@dataclass(frozen=True)
class SlotsAwaited(FitEvent):
    """The ranks wait for task slots that other fits of this process or other jobs have, or that are gone with their
    executors; told within 5 seconds, then every 30 seconds.

    Attributes:
        slots: that the ranks need at once, at least.
        free: that nobody has, as far as is known.
        total: slots of the application; where executors were lost, those that are left for these ranks.
        ahead: fits and programs that run, or wait and came before.
        waited_s: seconds so far.
    """

    slots: int
    free: int
    total: int
    ahead: int
    waited_s: float


@dataclass(frozen=True)
class GenerationStarted(FitEvent):
    """The ranks are launched; once more after each failure that is worth it, and where more or fewer ranks go on.

    Attributes:
        generation: 0 for the first launch.
        world_size: ranks of this generation.
        restart: why there is another one: "failed", "preempted" (the platform wanted its slots back) or "resized"
            (there was room for more ranks); "" for the first.
        cause: how the one before ended, a sentence.
    """

    generation: int
    world_size: int
    restart: str = ""
    cause: str = ""


@dataclass(frozen=True)
class RankLost(FitEvent):
    """A generation failed because a rank died or was lost, not by an error of its own.

    Attributes:
        generation: which one.
        rank: the first that failed; None where nobody can say.
        host: its host, or "unknown".
        kind: "signal", "executor_lost", "peer_lost" or "stalled".
        cause: one sentence.
        ago_s: seconds since it was last alive, at least.
    """

    generation: int
    rank: int | None
    host: str
    kind: str
    cause: str
    ago_s: float = 0.0


@dataclass(frozen=True)
class Straggler(FitEvent):
    """A rank was busy much longer than the others: they wait for it in every step. Seconds in which a rank waits for
    another one are not among those in which it is busy.

    Attributes:
        epoch: from 0.
        rank: the late one.
        seconds: that it was busy: in the last steps where there is a `step`, else in the whole epoch.
        others: seconds of the others, the median.
        step: global batches of the epoch that were done when it was found, a few steps after it became slow, once for
            each rank and epoch; None at the end of an epoch.
    """

    epoch: int
    rank: int
    seconds: float
    others: float
    step: int | None = None
