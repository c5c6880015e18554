"""Processes of ranks that have imported torch already: forked from this one, where a launcher would start Python.

A rank spends two seconds of CPU on imports, and a thousand deaths would be an hour of them. What is forked runs the
same code as what would have been started: in a session of its own, with its pipes and its environment, and with no
other open file.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

# What a rank has imported when it has trained a step. `torch._dynamo` comes with the first optimizer.
_IMPORTED = (
    "horovod.torch",
    "pandas",
    "pyarrow.parquet",
    "torch._dynamo",
    "hvdspark.collectives",
    "hvdspark.data.feed.loader",
    "hvdspark.data.readers.petastorm",
    "hvdspark.launch.keeper",
    "hvdspark.launch.rank",
    "hvdspark.train.on_rank",
)


class WarmPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, but for the processes of hvdspark's launchers."""

    def __init__(self, args: Any, *others: Any, **options: Any) -> None:
        command = [str(part) for part in args] if isinstance(args, Sequence) and not isinstance(args, str) else []
        if command[:2] == [sys.executable, "-c"] and "from hvdspark.launch" in command[2]:
            code = compile(command[2], "<forked>", "exec")
            before = options.get("preexec_fn")
            options["preexec_fn"] = partial(_become, code, options.get("env"), options.get("pass_fds", ()), before)
        super().__init__(args, *others, **options)


def warm_up() -> None:
    """Import what ranks and their tasks import, and fork them from now on. Single-threaded until then."""
    for module in _IMPORTED:
        importlib.import_module(module)
    importlib.import_module("torch").set_num_threads(1)
    subprocess.Popen = WarmPopen  # type: ignore[misc]


def forked(body: Callable[[], None], output: int) -> int:
    """The pid of a process of this one's making that calls `body` and ends.

    Args:
        output: descriptor that becomes its standard output and error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setsid()
        _close_all_but(())
        _to_its_end(body)
    return pid


def _become(code: Any, env: Mapping[str, str] | None, kept: Sequence[int], before: Callable[[], Any] | None) -> None:
    """Called in the child between fork and exec, which does not come."""
    _close_all_but(kept)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # `Popen` has put it back for a program; Python's is to ignore it
    if before is not None:
        before()
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    _to_its_end(partial(exec, code, {"__name__": "__main__"}))


def _to_its_end(body: Callable[[], Any]) -> NoReturn:
    gc.freeze()  # nothing of the parent's is ours to finish
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1)  # the runner asks those that hang where they are
    status = 0
    try:
        body()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _close_all_but(kept: Sequence[int]) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))
