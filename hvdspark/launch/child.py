"""Start, feed, watch and end one rank process, from inside its barrier task."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from hvdspark.launch import frames

TAIL_LINES = 40
_LONGEST_LINE = 2000
_PR_SET_CHILD_SUBREAPER = 36
# How long a rank that has answered may take to leave (atexit handlers, freeing memory) before it is killed.
_LEAVE_S = 10.0

# sys.path is set before anything is imported, so that a file in the working directory cannot shadow a module.
_BOOTSTRAP = (
    "import sys; sys.path[:] = {path!r}; from hvdspark.launch.rank import main; main({result_fd}, {parent_pid})"
)


def rank_environment(base: Mapping[str, str], threads: int, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment a rank starts with. Pure.

    Args:
        base: the barrier task's environment; anything an earlier Horovod or MPI launch left in it is dropped.
        threads: CPU threads for this rank, used unless the executor sets OMP_NUM_THREADS itself.
        extra: what the user and the launcher add; wins over everything else.
    """
    kept = {name: value for name, value in base.items() if not name.startswith(("HOROVOD_", "OMPI_", "PMI_", "PMIX_"))}
    defaults = {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": kept.get("OMP_NUM_THREADS", str(threads)),
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        # Also the longest a rank waits for one that is frozen (SIGSTOP, swapping): Gloo then gives up.
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "60",
        # A collective that some ranks never call (a callback on rank 0 alone) would be waited for without end. Long
        # enough for one rank to write a large model while the others wait.
        "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "3600",
    }
    return {**kept, **defaults, **extra}


class RankProcess:
    """A rank process and the threads that drain its pipes."""

    def __init__(self, environment: Mapping[str, str], on_event: Callable[[dict[str, Any]], None]) -> None:
        self._on_event = on_event
        self._answer: tuple[bytes, bytes] | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._prefix = ""
        self._stopped = False
        self._ended = threading.Event()  # the process is gone
        self._changed = threading.Event()  # it is gone, or has answered
        set_child_subreaper()
        self._older_children = {process.pid for process in psutil.Process().children(recursive=True)}
        read_end, write_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    _BOOTSTRAP.format(path=sys.path, result_fd=write_end, parent_pid=os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(write_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._drain_output, name="hvdspark-output", daemon=True),
            threading.Thread(target=self._drain_frames, args=(read_end,), name="hvdspark-frames", daemon=True),
            threading.Thread(target=self._reap, name="hvdspark-reap", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send_program(self, program: bytes) -> None:
        self._send(frames.PROGRAM, program)

    def send_assignment(self, assignment: dict[str, Any], prefix: str) -> None:
        """Give the rank its place; `prefix` marks its lines in the executor's log from now on."""
        self._prefix = prefix
        self._send(frames.ASSIGNMENT, json.dumps(assignment).encode())

    def wait(self) -> dict[str, Any]:
        """Wait until the process has ended and say how: `{"status": "ok" | "failed" | "aborted", ...}`.

        Unlimited on purpose: training takes as long as it takes. Whoever decides that it must end calls `stop`.
        """
        # The pipe's end is no sign of death: a process that the rank forked may hold it open.
        self._changed.wait()
        if not self._ended.wait(_LEAVE_S if self._answer is not None else 0):
            self._kill_group()
        self._ended.wait()
        self._kill_group()  # what it started and left behind
        self._kill_adopted()
        for thread in self._threads:
            thread.join(timeout=_LEAVE_S)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        return self._outcome(self._process.returncode)

    def end(self) -> None:
        """Make sure that nothing is left, whatever happened in the task. Harmless after `wait`."""
        if not self._ended.is_set():
            self.stop()
            self.wait()

    def stop(self) -> None:
        """End the rank because of something outside it: its outcome is then "aborted", not "failed"."""
        self._stopped = True
        self._kill_group()

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

    def _outcome(self, code: int) -> dict[str, Any]:
        tail = "\n".join(self._tail)
        if self._answer is not None and self._answer[0] == frames.RESULT:
            return {"status": "ok", "result": self._answer[1]}
        if self._answer is not None:
            return {"status": "failed", "tail": tail, **json.loads(self._answer[1])}
        if self._stopped:
            return {"status": "aborted", "kind": "stopped", "cause": "stopped because another rank failed"}
        if code < 0:
            return {"status": "failed", "kind": "signal", "cause": describe_signal(-code), "tail": tail}
        cause = f"exited with code {code} before it returned a result"
        return {"status": "failed", "kind": "exit", "cause": cause, "tail": tail}

    def _send(self, kind: bytes, body: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: wait() tells why
            frames.write_frame(self._process.stdin, kind, body)  # type: ignore[arg-type]

    def _drain_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip("\n")[:_LONGEST_LINE]
                self._tail.append(line)
                print(f"{self._prefix}{line}", file=sys.stderr, flush=True)

    def _drain_frames(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb") as stream:
            while frame := frames.read_frame(stream):
                if frame[0] != frames.EVENT:
                    self._answer = frame
                    self._changed.set()
                    return
                self._on_event(json.loads(frame[1]))

    def _reap(self) -> None:
        self._process.wait()
        self._ended.set()
        self._changed.set()


def set_child_subreaper() -> None:
    """Make orphans among this process's descendants its children (PR_SET_CHILD_SUBREAPER, Linux), not init's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
