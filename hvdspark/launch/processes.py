"""What Linux can do for a process whose parent ends before it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(parent_pid: int, by: signal.Signals) -> None:
    """Let the kernel send the signal `by` to this process when the thread that started it ends (PR_SET_PDEATHSIG).

    Leaves the process at once where its parent is not `parent_pid` any more.
    """
    if sys.platform == "linux":
        prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before prctl
        os._exit(1)


def set_child_subreaper() -> None:
    """Make orphans among this process's descendants its children (PR_SET_CHILD_SUBREAPER, Linux), not init's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
