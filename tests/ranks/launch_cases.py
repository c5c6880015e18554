"""What ranks do in test_launchers: describe themselves, and fail in every way."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import hvdspark
from hvdspark.errors import DataError, PreemptedError

# A sitecustomize.py that lets the first process sleep before it imports anything else.
SLOW = """
import os, time
try:
    os.close(os.open(os.environ["FIRST_ONE"], os.O_CREAT | os.O_EXCL))
    time.sleep(float(os.environ["SLOW_S"]))
except (FileExistsError, KeyError):
    pass
"""


def describe_rank(text: str, punctuation: str = "") -> dict[str, Any]:
    import horovod.torch as hvd
    import torch

    context = hvdspark.context()
    context.report({"event": "hello", "text": text})
    total = hvd.allreduce(torch.tensor([float(context.rank + 1)]), op=hvd.Sum, name="total")
    return {
        "context": (context.rank, context.size, context.local_rank, context.local_size),
        "horovod": (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()),
        "collective": (context.collective.rank, context.collective.size),
        "total": total.item(),
        "text": text + punctuation,
        "device": context.device,
        "generation": context.generation,
        "store": context.store.uri if context.store else None,
        "threads": torch.get_num_threads(),
        "stdin": sys.stdin.read(),
        "pid": os.getpid(),
    }


def big_result() -> bytes:
    return bytes(range(256)) * 20_000


def die(how: str, victim: int, marker: Path) -> None:
    import horovod.torch as hvd
    import torch

    for step in range(1000):
        hvd.allreduce(torch.ones(100), name="step")
        if step == 20 and hvdspark.context().rank == victim:
            print("last words", flush=True)
            marker.touch()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "segfault":
                ctypes.string_at(0)
            elif how == "raise":
                raise ValueError("the user's own mistake")
            elif how == "exit":
                sys.exit(3)
            elif how == "memory":
                resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
                torch.ones(1 << 34)


def hang(victim: int) -> None:
    import horovod.torch as hvd
    import torch

    for step in range(1000):
        hvd.allreduce(torch.ones(100), name="step")
        if step == 20 and hvdspark.context().rank == victim:
            os.kill(os.getpid(), signal.SIGSTOP)


def fork_and_die(marker: Path) -> None:
    # A process that the rank forks holds its pipes open; it must neither delay the error nor survive.
    if os.fork() == 0:
        time.sleep(600)
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def start_a_session_of_its_own(marker: Path, fatal: bool) -> int:
    started = subprocess.Popen(["sleep", "600"], start_new_session=True)
    marker.touch()
    if fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return started.pid


class UnpicklableError(DataError):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def raise_unpicklable_error() -> None:
    raise UnpicklableError("still readable")


def raise_own_error() -> None:
    raise DataError("labels are odd", value=3, where="label", hint="make them even")


def return_what_cannot_be_pickled() -> Any:
    return threading.Lock()


def raise_after_counting(calls: Path) -> None:
    with calls.open("a") as file:
        file.write("x")
    raise ValueError("always")


def return_early_or_wait(first: int) -> None:
    import horovod.torch as hvd
    import torch

    if hvdspark.context().rank != first:
        hvd.allreduce(torch.ones(1), name="alone")


def kill_my_parent_and_wait(marker: Path) -> None:
    marker.touch()
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)


def wait(folder: Path) -> None:
    partial = folder / f"partial-{hvdspark.context().rank}"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / f"waiting-{hvdspark.context().rank}")
    time.sleep(600)


def die_in_generation(fatal: int) -> int:
    generation = hvdspark.context().generation
    if generation < fatal and hvdspark.context().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    import horovod.torch as hvd
    import torch

    hvd.allreduce(torch.ones(1), name="alive")
    return generation


def make_room(last_generation: int) -> int:
    """Steps until a rank is asked to make room, which all do after the same step; returns it in the last generation."""
    import horovod.torch as hvd
    import torch

    context = hvdspark.context()
    for step in range(100_000):
        asked = float(context.preempted())
        if hvd.allreduce(torch.tensor([asked]), op=hvd.Sum, name="asked").item():
            raise PreemptedError(f"after step {step}", value=context.preempted_because)
        if step == 0:
            context.report({"event": "stepping", "pid": os.getpid(), "generation": context.generation})
        if context.generation == last_generation:
            return step
        time.sleep(0.01)
    raise AssertionError("nobody asked")
