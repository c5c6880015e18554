"""What this test process and everything it started hold at one moment, so that two moments can be compared."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import dataclass

import psutil

# Set once for each test process and inherited by everything it starts. It finds orphans, which are nobody's children.
RUN_MARKER = "HVDSPARK_TEST_RUN"


@dataclass(frozen=True)
class Footprint:
    """A snapshot. Spark's own Python daemon and its idle workers are not part of it: Spark keeps those on purpose.

    Attributes:
        processes: (pid, command line) of descendants, and of orphans that carry this run's marker.
        listeners: (command line, port) of TCP sockets in LISTEN, of this process and of the processes above.
        threads: names of the threads of this process, one entry for each.
        files: regular files that this process has open.
        environ: os.environ.
    """

    processes: frozenset[tuple[int, str]]
    listeners: frozenset[tuple[str, int]]
    threads: tuple[tuple[int, str], ...]
    files: frozenset[str]
    environ: tuple[tuple[str, str], ...]

    @staticmethod
    def take() -> Footprint:
        me = psutil.Process()
        processes, listeners = set(), set(_listening(me))
        for process in {*me.children(recursive=True), *_orphans()}:
            try:
                command = " ".join(process.cmdline())
                worker = "-m pyspark.daemon" in command or "-m tests.python_daemon" in command
                daemon = worker and process.ppid() != 1 and "java" in psutil.Process(process.ppid()).name()
                if not worker and process.status() != psutil.STATUS_ZOMBIE:
                    processes.add((process.pid, command))
                if not daemon:
                    listeners.update(_listening(process))
            except psutil.NoSuchProcess:
                continue
        return Footprint(
            frozenset(processes),
            frozenset(listeners),
            tuple((thread.ident or 0, thread.name) for thread in threading.enumerate()),
            frozenset(file.path for file in me.open_files()),
            # pytest itself writes the name of the running test here.
            tuple(sorted((key, value) for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST")),
        )

    def leaks_since(self, before: Footprint) -> list[str]:
        """One line for each thing that is here now and was not before, and for each changed variable."""
        old_threads = set(before.threads)
        changed = {key for key, _ in set(self.environ) ^ set(before.environ)}
        lines = [f"process {pid}: {command[:300]}" for pid, command in self.processes - before.processes]
        lines += [f"port {port} of {command[:200]}" for command, port in self.listeners - before.listeners]
        lines += [f"thread {name}" for ident, name in self.threads if (ident, name) not in old_threads]
        lines += [f"open file {path}" for path in self.files - before.files]
        lines += [f"environment variable {key}" for key in sorted(changed)]
        return lines


def leaks_after_settling(before: Footprint, timeout_s: float = 5.0) -> list[str]:
    """The leaks that are still there when `timeout_s` is over; returns at once when there are none."""
    gc.collect()  # of a module that is no longer used, but not yet collected, the tables' files are open
    deadline = time.monotonic() + timeout_s
    while (leaks := Footprint.take().leaks_since(before)) and time.monotonic() < deadline:
        time.sleep(0.1)  # there is no event for "a process that is not ours has gone"
    return leaks


def _listening(process: psutil.Process) -> list[tuple[str, int]]:
    command = " ".join(process.cmdline())
    connections = process.net_connections(kind="tcp")
    return [(command, item.laddr.port) for item in connections if item.status == psutil.CONN_LISTEN]


def _orphans() -> list[psutil.Process]:
    marker = os.environ.get(RUN_MARKER)
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUN_MARKER) == marker is not None:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
