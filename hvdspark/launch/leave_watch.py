"""Whether Spark is about to take executors away on which ranks run. Driver side.

A decommissioned executor goes on with its tasks until somebody ends it, which ranks that make room in time do not see.
Executors cannot be asked: their Python workers are told nothing. The driver of a classic session knows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


class LeaveWatch:
    """Asks ranks to make room when one of their executors is about to go. A context, while they run.

    Args:
        leaving: names of executors that are about to go, of those that the ranks have. What it raises ends the watch.
        ask: called once, in a thread, with the reason.
        look_every_s: seconds.
    """

    def __init__(
        self, leaving: Callable[[], Sequence[str]], ask: Callable[[str], None], look_every_s: float = _LOOK_EVERY_S
    ) -> None:
        self._leaving, self._ask, self._look_every_s = leaving, ask, look_every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hvdspark-leave-watch", daemon=True)

    def __enter__(self) -> LeaveWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        while not self._over.wait(self._look_every_s):
            try:
                leaving = self._leaving()
            except Exception:  # another scheduler than Spark's own, or a session that ends
                logger.debug("it cannot be told which executors are about to go", exc_info=True)
                return
            if leaving:
                logger.warning("Spark decommissions executors %s: their ranks are asked to make room", list(leaving))
                self._ask(f"Spark decommissions executors {', '.join(leaving)}")
                return
