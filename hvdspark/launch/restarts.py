"""Whether a program is started again after a generation of its ranks has not ended well. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hvdspark.errors import PreemptedError, RankFailedError

Fate = Literal["fail", "counts", "free"]

# By how a rank has ended. A program that fails by itself would fail again; these did not fail by themselves. One that
# was asked to make room has done nothing wrong.
FATES: dict[str, Fate] = {
    "exception": "fail",
    "exit": "fail",
    "memory": "fail",
    "signal": "counts",
    "peer_lost": "counts",
    "executor_lost": "counts",
    "stalled": "counts",
    "preempted": "free",
}
# Before the first restart in a row, and the longest before any.
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# A program that makes room whenever it is started, without ever saving what it has done, gets nowhere.
MOST_FREE = 20


@dataclass(frozen=True)
class Ending:
    """How a generation ended that did not end well.

    Attributes:
        generation, world_size: which one, and its ranks.
        kind: a key of `FATES`.
        rank: the first that failed; None where nobody can say.
        host: its host.
        cause: one sentence.
        step: in which that rank was, where it has said so.
        advanced: whether a checkpoint became complete in this generation.
    """

    generation: int
    world_size: int
    kind: str
    rank: int | None
    host: str
    cause: str
    step: int | None = None
    advanced: bool = False

    def __str__(self) -> str:
        who = "an executor" if self.rank is None else f"rank {self.rank}"
        step = "" if self.step is None else f" in step {self.step}"
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return f"generation {self.generation} ({ranks}): {who} on host {self.host}{step}: {self.cause}"


@dataclass(frozen=True)
class Verdict:
    """What follows from an ending.

    Attributes:
        again: whether there is another generation.
        pause_s: how long to wait before.
        why: where there is none although this ending is worth one: the reason.
    """

    again: bool
    pause_s: float = 0.0
    why: str = ""


def kind_of(error: Exception) -> str:
    """The kind of ending that an error of a generation is about."""
    if isinstance(error, PreemptedError):
        return "preempted"
    return error.kind if isinstance(error, RankFailedError) else "exception"


def verdict(endings: Sequence[Ending], max_restarts: int) -> Verdict:
    """Whether another generation follows the last of these endings, which are all there were.

    Restarts are counted in a row: a checkpoint that became complete since then renews their number.

    Args:
        max_restarts: most of them in a row.
    """
    last, row = endings[-1], _without_a_checkpoint(endings)
    fate = FATES.get(last.kind, "fail")
    if fate == "fail":
        return Verdict(False)
    if fate == "free":
        free = sum(FATES.get(ending.kind) == "free" for ending in row)
        if free > MOST_FREE:
            return Verdict(False, why=f"it was asked to make room {free} times without a new checkpoint")
        return Verdict(True)
    failed = [ending for ending in row if FATES.get(ending.kind) == "counts"]
    if len(failed) > max_restarts:
        many = "1 restart" if max_restarts == 1 else f"{max_restarts} restarts in a row"
        return Verdict(False, why=f"{many} without a new checkpoint" if max_restarts else "")
    if len(failed) > 1 and _same_place(failed[-2], last):
        return Verdict(False, why=f"rank {last.rank} has ended in step {last.step} twice, as the step itself ends it")
    return Verdict(True, min(PAUSE_S * 2.0 ** (len(failed) - 1), LONGEST_PAUSE_S))


def _without_a_checkpoint(endings: Sequence[Ending]) -> list[Ending]:
    """The last endings, between which no checkpoint became complete."""
    row: list[Ending] = []
    for ending in reversed(endings):
        row.insert(0, ending)
        if ending.advanced:
            break
    return row


def _same_place(one: Ending, other: Ending) -> bool:
    """Whether both generations went the same way from the same checkpoint, and ended there alike."""
    places = [(ending.step, ending.rank, ending.kind, ending.cause) for ending in (one, other)]
    return None not in (other.step, other.rank) and not other.advanced and places[0] == places[1]
