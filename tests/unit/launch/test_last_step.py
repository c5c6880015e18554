"""What a task knows of the steps of a rank that is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import timeit
from pathlib import Path

from hvdspark.launch.last_step import LastStep, writer

ROOT = Path(__file__).parents[3]
RANK = """
import os, signal
from hvdspark.launch.last_step import writer
reached = writer({fd})
for step in range(1 << 40, (1 << 40) + 8):
    reached(step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_step_outlives_the_rank() -> None:
    step = LastStep()
    command = [sys.executable, "-c", RANK.format(fd=step.fd)]
    done = subprocess.run(command, pass_fds=(step.fd,), cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert step.read() == (1 << 40) + 7
    step.close()
    step.close()


def test_the_first_step_is_one_and_nothing_is_none() -> None:
    step = LastStep()
    reached = writer(os.dup(step.fd))
    assert step.read() is None
    reached(0)
    assert step.read() == 0
    step.close()


def test_it_may_be_said_in_every_step() -> None:
    step = LastStep()
    reached = writer(os.dup(step.fd))
    assert min(timeit.repeat(lambda: reached(7), number=1000, repeat=20)) < 20e-6 * 1000
    step.close()
