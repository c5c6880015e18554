"""Tasks of a barrier stage meet within a limit of ours."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hvdspark.errors import StartTimeoutError
from hvdspark.launch.barrier import all_gather


class StuckContext:
    """Stands in for a BarrierTaskContext of which another task never gets there."""

    def allGather(self, message: str) -> list[str]:
        threading.Event().wait(timeout=5)
        return []


def test_the_tasks_do_not_wait_for_each_other_without_end() -> None:
    context: Any = StuckContext()
    with pytest.raises(StartTimeoutError, match=r"not all tasks .* after 0.2 s"):
        all_gather(context, "", 0.2)
