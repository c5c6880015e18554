"""Start, feed, watch and end one rank process, from inside its task."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil

from hvdspark.errors import MemoryBudgetError
from hvdspark.launch import frames, limit
from hvdspark.launch.last_step import LastStep
from hvdspark.launch.machine import out_of_memory_kills
from hvdspark.launch.outcomes import Outcome, StopCause
from hvdspark.launch.output import Output
from hvdspark.launch.processes import set_child_subreaper
from hvdspark.launch.pulse import Pulse
from hvdspark.rank_limit import RankLimit
from hvdspark.specs import to_json

_READ_BYTES = 1 << 16
# How long a rank that has answered may take to leave (atexit handlers, freeing memory) before it is killed.
_LEAVE_S = 10.0
# How long the kernel may take to end what was killed. It cannot while a system call hangs (a dead file server).
_DIE_S = 30.0
STOPPED = StopCause("stopped", "stopped because its task is over")

# sys.path is set before anything is imported, so that a file in the working directory cannot shadow a module.
_BOOTSTRAP = (
    "import sys; sys.path[:] = {path!r}; from hvdspark.launch.rank import main; "
    "main({result_fd}, {parent_pid}, {step_fd})"
)
_JAR_OF_SPARK = re.compile(r"(^|/)spark-core_[^/]*\.jar$")
_ZIP_OF_SPARK = re.compile(r"(?P<installed>.*)/pyspark/python/lib/[^/]*\.zip$")


class RankProcess:
    """A rank process and the threads that serve its pipes.

    Attributes:
        pid: of the process.
        pulse: the last sign of life; None before the first.
        pulses: how many there were.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        on_event: Callable[[dict[str, Any]], None],
        search_path: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            on_event: called in a thread with what the rank reports.
            search_path: folders in front of this process's own search path.
        """
        self._on_event = on_event
        self._answer: tuple[bytes, bytes] | None = None
        self._output = Output()
        self._stop_cause: StopCause | None = None
        self._failed_by_itself = False
        self.pulse: Pulse | None = None
        self.pulses = 0
        self._given_up = False
        self._limit: RankLimit | None = None
        self._who = "a rank"
        self._killed_before = out_of_memory_kills()
        self._ended = threading.Event()  # the process is gone
        self._changed = threading.Event()  # it is gone, has answered, or must go
        self._ready = threading.Event()  # it waits for the others, or will never do so
        self._to_send: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
        set_child_subreaper()
        self._older_children = {process.pid for process in psutil.Process().children(recursive=True)}
        path = [*search_path, *without_archives_of_spark(sys.path)]
        step = self._last_step = LastStep()
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    _BOOTSTRAP.format(path=path, result_fd=write_end, parent_pid=os.getpid(), step_fd=step.fd),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(write_end, step.fd),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            step.close()
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._drain_output, name="hvdspark-output", daemon=True),
            threading.Thread(target=self._drain_frames, args=(read_end,), name="hvdspark-frames", daemon=True),
            threading.Thread(target=self._feed, name="hvdspark-feed", daemon=True),
            threading.Thread(target=self._reap, name="hvdspark-reap", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send_program(self, program: bytes) -> None:
        self._to_send.put((frames.PROGRAM, program))

    def send_assignment(self, assignment: frames.Assignment) -> None:
        """Give the rank its place. Its lines in the log of the task are marked with it from now on."""
        self._limit = RankLimit.of(assignment.environment)
        self._who = f"rank {assignment.world.rank} on host {assignment.world.hostname}"
        self._output.prefix = f"[rank {assignment.world.rank} {assignment.world.hostname}] "
        self._to_send.put((frames.ASSIGNMENT, to_json(assignment).encode()))

    def wait_ready(self) -> bool:
        """Wait until the rank has imported everything; False when it ends before."""
        self._ready.wait()
        return not self._changed.is_set()

    def go(self) -> None:
        """All others are ready, too."""
        self._to_send.put((frames.GO, b""))

    def preempt(self, reason: str) -> None:
        """Ask the rank to make room, which it may do when it has come to a good place."""
        self._to_send.put((frames.PREEMPT, reason.encode()))

    def wait(self) -> Outcome:
        """Wait until the process has ended and say how.

        Unlimited on purpose: training takes as long as it takes. Whoever decides that it must end calls `stop`. From
        then on, or when the rank has answered, it takes a minute at most.
        """
        # The pipe's end is no sign of death: a process that the rank forked may hold it open.
        self._changed.wait()
        if not self._ended.wait(_LEAVE_S if self._answer is not None else 0):
            self._kill_group()
        self._given_up = not self._ended.wait(_DIE_S)
        self._kill_group()  # what it started and left behind
        self._kill_adopted()
        self._to_send.put(None)
        deadline = time.monotonic() + (0.0 if self._given_up else _LEAVE_S)
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        outcome = replace(self._outcome(self._process.returncode), step=self._last_step.read())
        self._last_step.close()
        return outcome

    def end(self) -> None:
        """Make sure that nothing is left, whatever happened in the task. Harmless after `wait`."""
        if not (self._ended.is_set() or self._given_up):
            self.stop()
            self.wait()

    def stop(self, cause: StopCause = STOPPED, *, by_itself: bool = False) -> None:
        """End the rank because of something outside it: its outcome is then "aborted", with `cause`, not "failed".

        Args:
            by_itself: the cause lies in the rank: its outcome is "failed", with that.
        """
        if self._stop_cause is None:
            self._stop_cause, self._failed_by_itself = cause, by_itself
        self._kill_group()
        self._changed.set()
        self._ready.set()

    def _kill_adopted(self) -> None:
        """SIGKILL what left the rank's process group: as their reaper, this process has become their parent."""
        me = psutil.Process()
        for process in me.children(recursive=True):
            if process.pid not in self._older_children:
                # One that the kernel cannot end yet must not take the rank's outcome with it.
                with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                    process.kill()
                    process.wait(timeout=1)  # they are ours to reap

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _outcome(self, code: int | None) -> Outcome:
        tail = self._output.tail
        if self._answer is not None and self._answer[0] == frames.RESULT:
            return Outcome("ok", result=self._answer[1])
        if self._answer is not None:
            return Outcome("failed", tail=tail, **json.loads(self._answer[1]))
        if (stop := self._stop_cause) is not None and self._failed_by_itself:
            return Outcome("failed", stop.kind, stop.cause, tail=tail)
        if stop is not None:
            return Outcome("aborted", stop.kind, stop.cause, about=stop.rank)
        if code is not None and (error := self._out_of_memory(-code, tail)) is not None:
            import cloudpickle

            return Outcome("failed", "memory", str(error.value), tail=tail, error=cloudpickle.dumps(error).hex())
        if code is not None and code < 0:
            return Outcome("failed", "signal", describe_signal(-code), tail=tail)
        return Outcome("failed", "exit", f"exited with code {code} before it returned a result", tail=tail)

    def _out_of_memory(self, number: int, tail: str) -> MemoryBudgetError | None:
        """The error where memory is what a signal was about."""
        if number == signal.SIGABRT and limit.ended_by_memory(tail):
            cause = f"native code gave up where an allocation failed: {describe_signal(number)}"
            return limit.said(cause, self._limit, self._who)
        if number == signal.SIGKILL and out_of_memory_kills() > self._killed_before:
            cause = "the kernel killed it, because its control group (the container) had no memory left"
            return limit.said(cause, None, self._who)
        return None

    def _feed(self) -> None:
        """Write what is sent. A thread of its own, because a rank that hangs does not read."""
        assert self._process.stdin is not None
        # A rank that has died says why in `wait`. Its input stays open until then: the end of it is the order to die.
        with contextlib.suppress(OSError), self._process.stdin as stream:
            while (frame := self._to_send.get()) is not None:
                with contextlib.suppress(BrokenPipeError):
                    frames.write_frame(stream, *frame)  # type: ignore[arg-type]

    def _drain_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while data := os.read(output.fileno(), _READ_BYTES):
                self._output.feed(data)
        self._output.end()

    def _drain_frames(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb") as stream:
            while frame := frames.read_frame(stream):
                if frame[0] == frames.READY:
                    self._ready.set()
                elif frame[0] == frames.PULSE:
                    self.pulse, self.pulses = Pulse.from_plain(frame[1]), self.pulses + 1
                elif frame[0] == frames.EVENT:
                    self._on_event(json.loads(frame[1]))
                else:
                    self._answer = frame
                    self._changed.set()
                    return

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()
        self._changed.set()
        self._ready.set()


def describe_signal(number: int) -> str:
    """ "killed by SIGKILL (9); ..." with what usually sends that signal."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "signal"
    usual: dict[int, str] = {
        signal.SIGKILL: "; often the kernel or the cluster manager when memory runs out: see "
        "spark.executor.memoryOverhead",
        signal.SIGSEGV: "; a crash in native code",
        signal.SIGABRT: "; native code gave up, its last output may say why",
        signal.SIGBUS: "; often a full /dev/shm or a truncated memory-mapped file",
    }
    return f"killed by {name} ({number}){usual.get(number, '')}"


def without_archives_of_spark(path: Sequence[str]) -> list[str]:
    """A search path of modules without what Spark puts on that of its Python workers, where nothing is found there.

    That is its jar, which holds no Python, and archives of pyspark and py4j, where pyspark is installed and they are a
    part of it. A rank would read their thousands of names twice: for imports, and for the versions that torch asks for.
    """
    kept = []
    for place in path:
        archive = _ZIP_OF_SPARK.match(place)
        if not _JAR_OF_SPARK.search(place) and not (archive and archive["installed"] in path):
            kept.append(place)
    return kept
