"""How many ranks a generation gets: it waits for slots where there are too few, says so, and does not wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hvdspark.errors import NotEnoughSlotsError
from hvdspark.launch.protocol import Slots
from hvdspark.launch.world_sizes import WorldSizes

# Spark puts another executor in the place of one that was killed within 3 to 7 s (local-cluster, standalone). Ranks
# wait for that: a generation of fewer would be ended again to let it grow.
SETTLE_S = 8.0
# A first generation waits for slots that other jobs have, which may be about to end.
SETTLE_FIRST_S = 2.0
# What Spark says of its slots is of this moment; what runs on them may be a second old.
GROW_AFTER_S = 3.0
_LOOK_EVERY_S = 0.2
_WATCH_EVERY_S = 1.0
_SAY_AFTER_S = 1.0
_SAY_EVERY_S = 30.0

Look = Callable[[], Slots | None]


@dataclass(frozen=True)
class Wanted:
    """What a generation would like to have.

    Attributes:
        sizes: the bounds.
        ranks: fewer only if there are no more after a while.
        settle_s: that while.
    """

    sizes: WorldSizes
    ranks: int
    settle_s: float


def ranks_for(slots: Slots | None, wanted: Wanted, waited_s: float) -> int | None:
    """Ranks of a generation that has waited so long; None where it waits on. Pure.

    Slots that other tasks have are waited for here only where fewer ranks will do: else by Spark, which knows best when
    they are free.
    """
    sizes = wanted.sizes
    if slots is None:
        return wanted.ranks
    if slots.total < sizes.least:
        return None
    if sizes.least == sizes.most:
        return sizes.least
    ready = sizes.fitting(slots.free) or sizes.least
    return ready if ready >= wanted.ranks or waited_s >= wanted.settle_s else None


def wait_for_room(
    look: Look,
    wanted: Wanted,
    *,
    pause_s: float,
    limit_s: float,
    say: Callable[[Slots, float, bool], None],
    go_on: Callable[[], None],
) -> int:
    """Ranks of the next generation, once there is room for them.

    Args:
        pause_s: is waited for in any case.
        say: told of what is there, seconds so far, and whether it was told before: after a second, then every 30.
        go_on: raises where nobody wants to wait any more.

    Raises:
        NotEnoughSlotsError: there is no room after `limit_s` seconds.
    """
    began_s, pause = time.monotonic(), threading.Event()
    say_at_s, said = began_s + _SAY_AFTER_S, False
    while True:
        go_on()
        slots, waited_s = look(), time.monotonic() - began_s
        ranks = ranks_for(slots, wanted, waited_s)
        if ranks is not None and waited_s >= pause_s:
            return ranks
        if slots is None or ranks is not None:
            pause.wait(min(_LOOK_EVERY_S, pause_s - waited_s))
            continue
        if waited_s >= limit_s:
            raise NotEnoughSlotsError(
                f"{wanted.sizes.least} ranks need as many task slots at once, and the session has {slots.total} for "
                f"them, also after {limit_s:g} s",
                where="start_timeout_s",
                hint="executors were lost and did not come back; min_workers is the fewest ranks to go on with",
            )
        if began_s + waited_s >= say_at_s and slots.total < wanted.sizes.least:
            say(slots, waited_s, said)
            say_at_s, said = began_s + waited_s + _SAY_EVERY_S, True
        pause.wait(_LOOK_EVERY_S)


class GrowthWatch:
    """Looks for room for more ranks while a generation runs that has fewer than it may have.

    Args:
        look: as many as run count as free.
        ask: called once, in a thread, with the number of ranks that there has been room for for `GROW_AFTER_S`.
    """

    def __init__(self, look: Look, sizes: WorldSizes, running: int, ask: Callable[[int], None]) -> None:
        self._look, self._sizes, self._running, self._ask = look, sizes, running, ask
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hvdspark-growth", daemon=True)

    def __enter__(self) -> GrowthWatch:
        if self._running < self._sizes.most:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _watch(self) -> None:
        since_s: float | None = None
        while not self._over.wait(_WATCH_EVERY_S):
            slots, now = self._look(), time.monotonic()
            ranks = None if slots is None else self._sizes.fitting(slots.free)
            if ranks is None or ranks <= self._running:
                since_s = None
                continue
            since_s = now if since_s is None else since_s
            if now - since_s >= GROW_AFTER_S:
                self._ask(ranks)
                return
