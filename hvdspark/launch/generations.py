"""One generation after another, until a program has ended well or is not worth another one. Driver side.

The number of ranks belongs to the generation: each has as many as there is room for, within the bounds.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hvdspark.errors import HvdSparkError, PreemptedError, RankFailedError
from hvdspark.launch.generation import Event, run_generation
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import Launcher, LaunchSpec, Seat, Slots
from hvdspark.launch.restarts import FATES, Ending, kind_of, verdict
from hvdspark.launch.room import SETTLE_FIRST_S, SETTLE_S, GrowthWatch, Wanted, wait_for_room
from hvdspark.launch.world_sizes import WorldSizes

logger = logging.getLogger(__name__)


class Generations:
    """The generations of one program.

    Args:
        first: the world size and secret of each are its own, and generations are counted from its.
        sizes: bounds of the number of ranks.
        max_restarts: most restarts in a row, without a new checkpoint, that count (`restarts`).
        report: takes what ranks report and what is known here. Must not fail.
        preemption: asks for the end of all of them.
        seat: has the slots of all of them: a gang that is started again is in the middle of its work.
    """

    def __init__(
        self,
        launcher: Launcher,
        first: LaunchSpec,
        sizes: WorldSizes,
        max_restarts: int,
        report: Callable[[Event], None],
        preemption: Preemption,
        seat: Seat,
    ) -> None:
        self._launcher, self._first, self._sizes, self._max_restarts = launcher, first, sizes, max_restarts
        self._report, self._preemption, self._seat = report, preemption, seat
        self._endings: list[Ending] = []
        self._wanted: int | None = None  # ranks of the next generation, where the one before it says
        self._restart, self._pause_s = "", 0.0
        self._advanced = self._grows = False

    def run(self) -> list[Any]:
        """What the program returned on each rank, in the first generation that ended well. See `supervisor.run`."""
        while True:
            try:
                spec = self._next()
            except HvdSparkError as error:
                _tell_of(error, self._endings)
                raise
            try:
                return self._attempt(spec)
            except HvdSparkError as error:
                if self._preemption.reason is not None and isinstance(error, PreemptedError):
                    raise
                self._after(spec, error)

    def _next(self) -> LaunchSpec:
        """The next generation, when there is room for it."""
        ranks = wait_for_room(
            self._seat.slots,
            self._wish(),
            pause_s=self._pause_s,
            limit_s=self._first.start_timeout_s,
            say=self._say_that_it_waits,
            go_on=self._preemption.go_on,
        )
        self._seat.hold(ranks)
        number = self._first.generation + len(self._endings)
        why = {"restart": self._restart, "cause": str(self._endings[-1])} if self._endings else {}
        self._report({"event": "generation", "generation": number, "world_size": ranks, **why})
        return replace(self._first, world_size=ranks, generation=number, secret=secrets.token_hex(16))

    def _wish(self) -> Wanted:
        if self._wanted is not None:
            return Wanted(self._sizes, self._wanted, SETTLE_S)
        # The first generation takes what is there: executors that come later let it grow.
        slots = self._seat.slots()
        there_are = self._sizes.fitting(None if slots is None else slots.total)
        return Wanted(self._sizes, there_are or self._sizes.least, SETTLE_FIRST_S)

    def _attempt(self, spec: LaunchSpec) -> list[Any]:
        self._advanced = self._grows = False
        own, ranks = Preemption(), spec.world_size
        look = partial(self._seat.slots, ranks)

        def grow(more: int) -> None:
            logger.warning("there is room for %d ranks instead of %d: they start again from a checkpoint", more, ranks)
            self._grows, self._wanted = True, more
            own.ask(f"there is room for {more} ranks")

        self._wanted = ranks
        with self._preemption.told_to(own.ask), GrowthWatch(look, self._sizes, ranks, grow):
            return run_generation(self._launcher, spec, self._hear, own, look)

    def _hear(self, event: Event) -> None:
        if event.get("event") == "checkpoint":
            self._advanced = True
        self._report(event)

    def _after(self, spec: LaunchSpec, error: HvdSparkError) -> None:
        """Get ready for the next generation, or raise the error, which tells of all of them."""
        self._endings.append(_ending(spec, error, self._advanced))
        last, follows = self._endings[-1], verdict(self._endings, self._max_restarts)
        if FATES.get(last.kind) == "counts":
            lost = {"lost": last.rank, "host": last.host, "kind": last.kind, "cause": last.cause}
            ago_s = spec.stall_timeout_s if last.kind == "stalled" else 0.0  # that long nobody had heard of it
            self._report({"event": "rank_lost", "generation": last.generation, "ago_s": ago_s, **lost})
        if not follows.again:
            if follows.why:
                error.tell(f"It is not started again: {follows.why}")
            _tell_of(error, self._endings[:-1])
            raise error
        self._pause_s = follows.pause_s
        if last.kind == "preempted":
            self._restart = "resized" if self._grows else "preempted"
            logger.info("generation %d has made room, starting again: %s", last.generation, last.cause)
        else:
            self._restart = "failed"
            logger.warning("generation %d failed, starting again: %s", last.generation, last.cause)

    def _say_that_it_waits(self, slots: Slots, waited_s: float, again: bool) -> None:
        wanted = self._sizes.least
        level = logging.INFO if again else logging.WARNING
        logger.log(level, "waiting for %d slots, %d free; %.0f s so far", wanted, slots.free, waited_s)
        place = {"slots": wanted, "free": slots.free, "total": slots.total, "ahead": 0, "waited_s": waited_s}
        self._report({"event": "waiting", **place, "again": again})


def _ending(spec: LaunchSpec, error: HvdSparkError, advanced: bool) -> Ending:
    found = error if isinstance(error, RankFailedError) else error.__cause__
    rank, host, step = None, "unknown", None
    if isinstance(found, RankFailedError):
        rank, host, step = found.rank, found.host, found.step
    cause = error.cause if isinstance(error, RankFailedError) else f"{type(error).__name__}: {error.what}"
    return Ending(spec.generation, spec.world_size, kind_of(error), rank, host, cause, step, advanced)


def _tell_of(error: HvdSparkError, earlier: Sequence[Ending]) -> None:
    if earlier:
        error.tell("\n  ".join(("What ended the generations before:", *map(str, earlier))))
