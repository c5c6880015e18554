"""The environment variables of a rank: what it inherits, what it is given, and what only hvdspark may say."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping

from hvdspark.errors import ConfigurationError
from hvdspark.launch.wiring import ALWAYS, RESERVED, UNLESS_SET

THREADS = "OMP_NUM_THREADS"
_OF_MPI = ("OMPI_", "PMI_", "PMIX_")
# What a step frees, the next one needs again. glibc gives it back to the system in between, and then takes it page by
# page. A block above the first size is mapped by itself (the largest size that every glibc takes), so that large slabs
# of rows are no part of this; what is free at the end of the heap is given back above the second one.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


def rank_environment(base: Mapping[str, str], threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment a rank starts with.

    Args:
        base: the task's environment, `spark.executorEnv` included. What an earlier Horovod or MPI launch left
            in it about itself is dropped; Horovod's other settings are kept.
        threads: CPU threads for this rank, used unless the executor sets OMP_NUM_THREADS itself.
        extra: what the user and the launcher add; wins over everything else.
    """
    kept = {name: value for name, value in base.items() if name not in RESERVED and not name.startswith(_OF_MPI)}
    malloc = {"MALLOC_ARENA_MAX": "1"} if address_space_is_limited() else _KEPT_MEMORY
    return {"PYTHONUNBUFFERED": "1", **UNLESS_SET, THREADS: str(threads), **malloc, **kept, **ALWAYS, **extra}


def address_space_is_limited() -> bool:
    """Whether Spark limits this process and its children (spark.executor.pyspark.memory).

    For each thread that allocates, malloc reserves 64 MiB of address space, which is then worth more than speed.
    """
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def check_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a user wants to add, checked. Raises ConfigurationError."""
    for name, value in extra.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(
                "environment variables are strings",  # and may be secrets: only their types are told
                value=f"{name!r} is of type {type(value).__name__}",
                where="env",
                hint="str(...) of it",
            )
        if name in RESERVED:
            raise ConfigurationError(
                "every rank has its own value of this variable", value=name, where="env", hint="leave it out"
            )
    if THREADS in extra:
        number_of_threads(extra[THREADS])
    return dict(extra)


def number_of_threads(text: str) -> int:
    """Of OMP_NUM_THREADS: "4", or "4,2" (the second number is for nested regions). Raises ConfigurationError."""
    first = text.split(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ConfigurationError("not a number of threads", value=text, where=THREADS, hint="1 or more, like 4")
    return int(first)


def search_path(extra: Mapping[str, str]) -> list[str]:
    """Folders that a PYTHONPATH in `extra` puts in front of the search path of the executor's Python."""
    return [folder for folder in extra.get("PYTHONPATH", "").split(os.pathsep) if folder]
