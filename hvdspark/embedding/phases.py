"""Names for the parts of an embedding step, so that somebody may time them. Where nobody does, they cost nothing.

distinct -> exchange ids -> find rows -> exchange rows -> expand -> backward -> exchange gradients -> update
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

DISTINCT = "distinct"
EXCHANGE_IDS = "exchange ids"
FIND_ROWS = "find rows"
EXCHANGE_ROWS = "exchange rows"
EXPAND = "expand"
BACKWARD = "backward"
EXCHANGE_GRADIENTS = "exchange gradients"
UPDATE = "update"

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
Timer = Callable[[str], AbstractContextManager[None]]

_NOBODY: AbstractContextManager[None] = nullcontext()
_timer: Timer | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """What a part of the step runs in. A phase may run inside another one."""
    return _NOBODY if _timer is None else _timer(name)


def in_phase(name: str) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """Let each call of a function be a phase."""

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        @functools.wraps(function)
        def inside(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
            with phase(name):
                return function(*args, **kwargs)

        return inside

    return decorate


@contextmanager
def timed_by(timer: Timer) -> Iterator[None]:
    """Let `timer(name)` be entered and left around each phase of this process, in whatever thread it runs."""
    global _timer
    before, _timer = _timer, timer
    try:
        yield
    finally:
        _timer = before
