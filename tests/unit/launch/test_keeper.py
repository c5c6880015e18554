"""A keeper leaves when it is told to, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys

# Told to leave while a finalizer runs, in which Python drops exceptions; then it waits.
_KEEPER = """
import os, signal, time
from hvdspark.launch import keeper

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs in here
            pass

def run(inbox, outbox):
    Finalized()
    time.sleep(60)

keeper._run = run
keeper.main(os.dup(1), os.getppid())
"""


def test_it_leaves_where_the_signal_came_while_a_finalizer_ran() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KEEPER], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (1, "")
