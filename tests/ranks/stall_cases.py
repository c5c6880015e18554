"""What ranks do in test_stalls."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path

import torch

import hvdspark


def say(folder: Path) -> None:
    """Leave this process's pid where the test looks for it."""
    context = hvdspark.context()
    partial = folder / f"partial-{context.generation}-{context.rank}"
    partial.write_text(str(os.getpid()))
    partial.rename(folder / f"rank-{context.generation}-{context.rank}")


def exchange_until_told(folder: Path) -> int:
    context, told = hvdspark.context(), torch.zeros(1)
    say(folder)
    while not told.item():
        time.sleep(0.01)
        own = torch.tensor([float((folder / "end").exists())])
        told = context.collective.allreduce_sum(own, "told")
    return context.generation


def exchange_what_the_others_do_not(folder: Path) -> None:
    context = hvdspark.context()
    context.collective.allreduce_sum(torch.ones(1), "all")
    say(folder)
    context.collective.allreduce_sum(torch.ones(1), f"of rank {context.rank}")


def let_rank_1_be_late(folder: Path) -> str:
    context = hvdspark.context()
    if context.rank == 1:
        # A call of native code that keeps Python's lock: no thread of Python can give a sign of life meanwhile.
        ctypes.PyDLL(None).usleep(3_000_000)
        time.sleep(3)
    context.collective.allreduce_sum(torch.ones(1), "all")
    return "slept" if context.rank == 1 else "waited"
