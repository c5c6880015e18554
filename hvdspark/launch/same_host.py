"""Ranks as processes of this host, without Spark: for tests of what only needs ranks, and for programs on one machine.

A rank, its task and their failures are those of a barrier stage; only what Spark does for a task is done here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import psutil

from hvdspark.errors import ClusterError, HvdSparkError, RankFailedError
from hvdspark.launch import frames
from hvdspark.launch.addresses import LOOPBACK
from hvdspark.launch.budget import MemoryTerms
from hvdspark.launch.child import describe_signal
from hvdspark.launch.job_errors import stalled_in
from hvdspark.launch.keeper import outcome_of, task_frame
from hvdspark.launch.line import Waiting
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.protocol import DriverAddress, Heard, LaunchSpec, Program, Seat
from hvdspark.launch.start_watch import SLOW, start_timeout
from hvdspark.launch.world_sizes import WorldSizes, check_world_size

# How long a keeper may take to end its rank. The kernel cannot end one while a system call hangs.
_LEAVE_S = 45.0
_BOOTSTRAP = (
    "import sys; sys.path[:] = {path!r}; from hvdspark.launch.keeper import main; main({answer_fd}, {parent_pid})"
)
_Said = tuple[int, tuple[bytes, bytes] | None]  # partition, frame


class NoSlots:
    """The `Seat` of a gang on a host, which has no slots: there is nothing to wait for."""

    def slots(self, running: int = 0) -> None:
        return None

    def hold(self, ranks: int) -> None:
        """Nobody else would get them."""


class SameHostLauncher:
    """The `Launcher` of this process.

    Args:
        memory: of each rank; where it is not given, the ranks share this machine.
    """

    def __init__(self, memory: MemoryTerms | None = None) -> None:
        self._memory = memory or MemoryTerms()

    def check(self, world_size: int, device: str, start_timeout_s: float) -> None:
        """Raises ConfigurationError where `world_size` is no number of ranks."""
        check_world_size(world_size)

    def turn(self, sizes: WorldSizes, on_wait: Callable[[Waiting], None]) -> contextlib.AbstractContextManager[Seat]:
        return contextlib.nullcontext(NoSlots())

    def driver_address(self) -> DriverAddress:
        return DriverAddress(LOOPBACK, LOOPBACK, 0)

    def pickled(self, program: Program) -> bytes:
        import cloudpickle

        text: bytes = cloudpickle.dumps(program)
        return text

    def job(self, spec: LaunchSpec) -> SameHostJob:
        return SameHostJob(replace(spec, memory=self._memory))


class SameHostJob:
    """The keepers of one generation."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._spec = spec
        self._said: queue.Queue[_Said] = queue.Queue()
        self._keepers: list[_Keeper] = []
        self._cancelled = threading.Event()

    def run(self) -> dict[int, Outcome]:
        size = self._spec.world_size
        with self._started():
            deadline = time.monotonic() + self._spec.start_timeout_s
            texts: dict[int, str] = {}
            while len(texts) < size:
                partition, body = self._hear(frames.INTRODUCTION, deadline)
                texts[partition] = body.decode()
            introductions = json.dumps([texts[partition] for partition in range(size)]).encode()
            for keeper in self._keepers:
                keeper.send(frames.INTRODUCTION, introductions)
            outcomes: dict[int, Outcome] = {}
            while len(outcomes) < size:
                rank, outcome = outcome_of(self._hear(frames.OUTCOME)[1])
                outcomes[rank] = outcome
        return outcomes

    def has_begun(self) -> bool:
        return True  # tasks wait for no slots

    def leaving(self) -> Sequence[str]:
        return ()

    def cancel(self) -> None:
        self._cancelled.set()
        for keeper in list(self._keepers):
            keeper.terminate()

    def explain(self, error: Exception, heard: Heard) -> Exception:
        return ClusterError("the ranks could not be started on this host", value=str(error))

    @contextlib.contextmanager
    def _started(self) -> Iterator[None]:
        """Keepers, from the first to the end of the last. All are started by one thread, which stays until then."""
        try:
            for partition in range(self._spec.world_size):
                if self._cancelled.is_set():
                    raise self._lost(partition)
                self._keepers.append(_Keeper(self._spec, partition, self._said))
            yield
        finally:
            for keeper in self._keepers:
                keeper.terminate()
            for keeper in self._keepers:
                keeper.wait()

    def _hear(self, kind: bytes, deadline: float | None = None) -> tuple[int, bytes]:
        """(partition, body) of the next message of a keeper.

        Raises:
            StartTimeoutError: there was none until `deadline`.
            RankFailedError: a keeper has died, or does not answer any more.
            ClusterError: a task failed by itself, or all were cancelled.
        """
        try:
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            partition, frame = self._said.get(timeout=left_s)
        except queue.Empty:
            what = f"not all tasks have started Python after {self._spec.start_timeout_s:g} s"
            raise start_timeout(what, SLOW) from None
        if frame is None:
            raise self._lost(partition)
        if frame[0] == frames.FAILURE:
            trace = frame[1].decode()
            raise stalled_in(trace) or ClusterError(f"the task of rank {partition} itself failed:\n{trace}")
        assert frame[0] == kind
        return partition, frame[1]

    def _lost(self, partition: int) -> HvdSparkError:
        if self._cancelled.is_set():
            return ClusterError("the ranks were cancelled")
        # On one host, partition and rank are the same.
        cause = f"its task was lost: {self._keepers[partition].ending()}"
        return RankFailedError(partition, socket.gethostname(), cause, kind="executor_lost")


class _Keeper:
    """The driver's end of a keeper process."""

    def __init__(self, spec: LaunchSpec, partition: int, said: queue.Queue[_Said]) -> None:
        """Start it. What it says is put into `said`; None when it ends before it has said how its rank did."""
        self._partition, self._said = partition, said
        read_end, write_end = os.pipe()
        code = _BOOTSTRAP.format(path=sys.path, answer_fd=write_end, parent_pid=os.getpid())
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                pass_fds=(write_end,),
                start_new_session=True,  # Ctrl-C is for the driver
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._thread = threading.Thread(target=self._talk, args=(spec, read_end), name="hvdspark-keeper", daemon=True)
        self._thread.start()

    def send(self, kind: bytes, body: bytes) -> None:
        """One that has died is heard of in `said`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            frames.write_frame(self._process.stdin, kind, body)  # type: ignore[arg-type]

    def terminate(self) -> None:
        """Let it end its rank and leave. One that was stopped (SIGSTOP) can only be killed, and its rank with it."""
        self._process.terminate()
        with contextlib.suppress(psutil.Error):
            if psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED:
                self._process.kill()

    def wait(self) -> None:
        """Until it has gone."""
        try:
            self._process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def ending(self) -> str:
        """How the process ended, in words. Waits for it."""
        code = self._process.wait(_LEAVE_S)
        return describe_signal(-code) if code < 0 else f"exited with code {code}"

    def _talk(self, spec: LaunchSpec, read_end: int) -> None:
        self.send(frames.TASK, task_frame(spec, self._partition))
        self.send(frames.PROGRAM, spec.program)
        with os.fdopen(read_end, "rb") as answers:
            while (frame := frames.read_frame(answers)) is not None:
                self._said.put((self._partition, frame))
                if frame[0] != frames.INTRODUCTION:
                    return  # that was its last word
        self._said.put((self._partition, None))
