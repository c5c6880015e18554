"""The memory limit that a rank sets itself, so that what exceeds it is this rank's error and not its executor's end.

The limit is that of the kernel on data (RLIMIT_DATA): heap, and mappings that are private and can be written. Mapped
files and shared memory are not counted, so that tables that are looked up in files cost nothing. An allocation beyond
it fails where it is made. Ranks with a GPU set none: CUDA reserves data in proportion to the memory of its devices.

The kernel counts what is reserved, not what was touched: stacks of threads, and what malloc has not given back.
`_NOT_TOUCHED` is for these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

from hvdspark.errors import MemoryBudgetError
from hvdspark.rank_limit import RankLimit

PYSPARK_MEMORY = "spark.executor.pyspark.memory"
_NOT_TOUCHED = (512 << 20) + (16 << 20) * (os.cpu_count() or 1)
# What allocators say: torch, C++, libc. What ends a process is in its last output.
_SAID = ("can't allocate memory", "not enough memory", "std::bad_alloc", "Cannot allocate memory")
_LONGEST_CHAIN = 20
_GIB = 1 << 30
_MORE_LIKELY = 300  # of 1000: by three tenths of the memory

_current: RankLimit | None = None
_who = "this process"
_untouched = 0


def begin(limit: RankLimit | None, device: str, who: str) -> None:
    """Limit this process, from now on; a rank has one limit for its whole life.

    Args:
        limit: None where there is none to set; Spark may limit the address space nevertheless.
        device: of the rank.
        who: the rank and its host, for errors.
    """
    global _current, _who, _untouched
    _who = who
    _prefer_to_executor()
    _current = _of_address_space(limit)
    if limit is None or device == "cuda":
        return
    _untouched = max(0, _of_status("VmData") - _of_status("RssAnon")) + _NOT_TOUCHED
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit.bytes + _untouched <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit.bytes + _untouched, hard))
        _current = _current or limit


def lift() -> None:
    """End the limit where it can be ended: whoever says what has happened needs memory, too."""
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (hard, hard))


def exceeded(error: BaseException) -> MemoryBudgetError | None:
    """What an exception means for the limit of this process; None where it has none, or the reason is another one."""
    found: BaseException | None = error
    for _ in range(_LONGEST_CHAIN):
        if found is None or isinstance(found, MemoryBudgetError):
            return found
        if _current is not None and _is_about_memory(found):
            used = max(0, _of_status("VmData") - _untouched)
            return said(f"{type(found).__name__}: {found}", _current, _who, used)
        found = found.__cause__ or found.__context__
    return None


def ended_by_memory(last_output: str) -> bool:
    """Whether the last output of a process that gave up (SIGABRT) says that an allocation failed."""
    return any(text in last_output for text in _SAID)


def said(cause: str, limit: RankLimit | None, who: str, used: int = 0) -> MemoryBudgetError:
    """The error of a rank that had not enough memory.

    Args:
        limit: None where it has none of its own.
        used: bytes that the rank has; 0 where that is not known.
    """
    share = "" if limit is None else f" than its {limit.bytes / _GIB:.2f} GiB"
    in_use = "" if not used else f", of which {used / _GIB:.2f} GiB were in use"
    setting = "the memory of the container" if limit is None else limit.setting
    return MemoryBudgetError(
        f"{who} wanted more memory{share}{in_use}",
        bytes=used,
        limit=0 if limit is None else limit.bytes,
        setting=setting,
        value=cause,
        where=setting,
        hint=f"raise {setting}, use more workers or smaller batches, or find what grows",
    )


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and ended_by_memory(str(error))


def _of_address_space(limit: RankLimit | None) -> RankLimit | None:
    """The limit that Spark has set for its Python workers and their children, where it is tighter."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or (limit is not None and limit.bytes <= hard):
        return None
    return RankLimit(hard, 0 if limit is None else limit.rows, PYSPARK_MEMORY)


def _prefer_to_executor() -> None:
    """Where memory runs out nevertheless, let the kernel end this process before the JVM that it works for."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text()) + _MORE_LIKELY)))


def _of_status(name: str) -> int:
    """Bytes of this process by a name of /proc/self/status; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0
