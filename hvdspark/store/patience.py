"""A store that fails for a while: it is asked again, at growing intervals, until it answers or a minute has passed."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hvdspark.errors import StoreError

R = TypeVar("R")
P = ParamSpec("P")

PATIENCE_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 8.0

# What another attempt may find gone: a network, or a server behind it, that comes back. What a user has to change
# (paths, rights, space) is said at once.
_PASSING = {
    *(errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
}


def may_pass(error: BaseException | None) -> bool:
    """Whether what has failed may work when it is tried again. Pure."""
    if isinstance(error, StoreError):
        return may_pass(error.__cause__)
    return isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _PASSING)


def patiently(
    act: Callable[[], R],
    *,
    limit_s: float = PATIENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> R:
    """What `act` returns, which is called again where the store fails for a while. Calls of it may be nested.

    Args:
        act: does all of its work anew in each call.
        limit_s: seconds from the first failure to the last attempt.

    Raises:
        StoreError: it fails in a way that does not pass, or has failed for so long.
    """
    started, attempts, pause = clock(), 0, _FIRST_PAUSE_S
    while True:
        attempts += 1
        try:
            return act()
        except StoreError as error:
            waited = clock() - started
            if not may_pass(error) or error.attempts > 1:
                raise
            if waited + pause > limit_s:
                last = StoreError(
                    f"{error.what}, again and again: {attempts} attempts in {waited:.0f} s",
                    value=error.value,
                    where=error.where,
                    hint=error.hint,
                )
                last.attempts = attempts
                raise last from error.__cause__
        sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)


def patient(method: Callable[P, R]) -> Callable[P, R]:
    """A method that does all of its work anew in each call, called `patiently`."""

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return patiently(lambda: method(*args, **kwargs))

    return called
