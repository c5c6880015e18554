"""The rank process: reads its function and its place in the gang, joins the others, calls, answers.

It is started by `child.RankProcess` with an explicit environment, in a session of its own, and never outlives its
task: the kernel kills it when its parent dies (PDEATHSIG), and a thread kills its whole process group when
the pipe from the parent ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from hvdspark.launch import frames, last_step, limit, pulse
from hvdspark.launch.preemption import Notice
from hvdspark.launch.processes import die_with_parent
from hvdspark.rank_limit import RankLimit
from hvdspark.specs import from_json


def main(result_fd: int, parent_pid: int, step_fd: int) -> None:
    """Body of the process. Ends it with `os._exit`, because nothing may delay a failure that peers wait for."""
    die_with_parent(parent_pid, signal.SIGKILL)
    notice = Notice()
    notice.listen_to_sigterm()
    inbox = _Inbox(os.fdopen(os.dup(0), "rb"), notice)
    # User code that reads standard input must not steal the parent's frames.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    outbox = _Outbox(os.fdopen(result_fd, "wb"))
    code = 1
    try:
        result = _run(inbox, outbox, notice, last_step.writer(step_fd))
        outbox.finish(frames.RESULT, result)
        code = 0
    except SystemExit as error:
        # The parent reports the exit code; Python prints a message given instead of a number, so do the same.
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        outbox.finish(None, b"")
    except BaseException as error:
        outbox.finish(frames.FAILURE, describe_failure(error))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(inbox: _Inbox, outbox: _Outbox, notice: Notice, reached: Callable[[int], None]) -> bytes:
    """Everything between start and answer; returns the pickled result."""
    # A fifth of the time of these imports is the garbage collector looking for garbage among modules.
    gc.disable()
    import cloudpickle
    import torch

    from hvdspark.launch import wiring

    # The slow imports overlap with the meeting of the tasks; user code is unpickled only after the device is decided,
    # because unpickling a CUDA tensor initialises CUDA.
    wiring.load()
    program = inbox.expect(frames.PROGRAM)
    assignment = from_json(frames.Assignment, inbox.expect(frames.ASSIGNMENT).decode())
    os.environ.update(assignment.environment)
    if assignment.files is not None:  # importing pyspark takes 0.1 s
        from hvdspark.launch.spark_values import receive

        receive(assignment.files, assignment.broadcasts)

    from hvdspark.collectives.watched import Waiting, WatchedCollective
    from hvdspark.launch.context import RankContext, enter
    from hvdspark.launch.devices import choose_device
    from hvdspark.launch.environment import THREADS, number_of_threads

    if THREADS in os.environ:
        torch.set_num_threads(number_of_threads(os.environ[THREADS]))

    world = assignment.world
    device = choose_device(assignment.device, assignment.gpu_scheduled, torch.cuda.is_available())
    if device == "cuda":
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    outbox.ready()
    waiting = Waiting()
    pulse.begin(outbox.pulse, lambda: pulse.pulse_of(waiting), assignment.pulse_every_s)
    inbox.expect(frames.GO)
    threading.Thread(target=inbox.listen, name="hvdspark-parent", daemon=True).start()
    collective = WatchedCollective(wiring.join(), waiting)
    store = None
    if assignment.store_uri is not None:
        from hvdspark.store import Store

        store = Store(assignment.store_uri)
    placed = world, device, assignment.generation, collective, store
    enter(RankContext(*placed, outbox.event, notice, reached, assignment.scratch))
    limit.begin(RankLimit.of(os.environ), device, f"rank {world.rank} on host {world.hostname}")
    fn, args, kwargs = _unpickle(program)  # imports the code of fn
    gc.freeze()
    gc.enable()
    result: bytes = cloudpickle.dumps(fn(*args, **kwargs))
    wiring.leave()
    return result


def _unpickle(program: bytes) -> Any:
    import cloudpickle

    try:
        return cloudpickle.loads(program)
    except ImportError as error:
        from hvdspark.errors import DependencyError

        raise DependencyError(
            f"the function or the module to train cannot be imported on the executors ({error})",
            value=error.name,
            hint="ship the file it is in: spark.sparkContext.addPyFile(path), with Spark Connect "
            "spark.addArtifact(path, pyfile=True), or spark-submit --py-files; or install it on every executor; or "
            "cloudpickle.register_pickle_by_value(module)",
        ) from error


def describe_failure(error: BaseException) -> bytes:
    """JSON of what the driver shows: cause, traceback, and whether only a vanished peer is behind it."""
    limit.lift()
    import cloudpickle

    from hvdspark.errors import HvdSparkError, PreemptedError
    from hvdspark.launch.wiring import caused_by_peer

    own = error
    kind = "preempted" if isinstance(error, PreemptedError) else "exception"
    if caused_by_peer(error):
        kind = "peer_lost"
    elif (exceeded := limit.exceeded(error)) is not None:
        kind, own = "memory", exceeded
    failure: dict[str, str] = {
        "kind": kind,
        "cause": "".join(traceback.format_exception_only(type(error), error)).strip(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    if isinstance(own, HvdSparkError):
        with contextlib.suppress(Exception):  # a subclass of the user's may not be picklable: the text must do
            failure["error"] = cloudpickle.dumps(own).hex()
    return json.dumps(failure).encode()


class _Outbox:
    """The pipe to the parent. Events are written by a thread, so that `report` never waits for the driver."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._queued: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(64)
        self._writer = threading.Thread(target=self._write, name="hvdspark-events", daemon=True)
        self._writer.start()

    def event(self, event: dict[str, Any]) -> None:
        with contextlib.suppress(queue.Full, TypeError, ValueError):
            self._queued.put_nowait((frames.EVENT, json.dumps(event).encode()))

    def pulse(self, body: bytes) -> None:
        with contextlib.suppress(queue.Full):  # then the task does not read, or there is other news
            self._queued.put_nowait((frames.PULSE, body))

    def ready(self) -> None:
        """Nothing else is written before."""
        frames.write_frame(self._stream, frames.READY, b"")

    def finish(self, kind: bytes | None, body: bytes) -> None:
        """Write what is queued, then the answer."""
        with contextlib.suppress(queue.Full):
            self._queued.put(None, timeout=5)
        self._writer.join(timeout=5)
        if kind is not None:
            frames.write_frame(self._stream, kind, body)

    def _write(self) -> None:
        while (frame := self._queued.get()) is not None:
            frames.write_frame(self._stream, *frame)


class _Inbox:
    """The pipe from the parent, which may say at any time that this rank is asked to make room."""

    def __init__(self, stream: BinaryIO, notice: Notice) -> None:
        self._stream, self._notice = stream, notice

    def expect(self, kind: bytes) -> bytes:
        """Body of the next message, which is of this kind; ends the process where there is none."""
        frame = self._next()
        if frame is None or frame[0] != kind:
            os._exit(1)  # the parent has gone or given up before the gang was complete
        return frame[1]

    def listen(self) -> None:
        """Body of a thread: hear what is said until the parent ends, and then kill this process's group."""
        self._next()  # nothing else is said from now on: this returns when the parent's end of the pipe closes
        os.killpg(0, signal.SIGKILL)

    def _next(self) -> tuple[bytes, bytes] | None:
        while (frame := frames.read_frame(self._stream)) is not None and frame[0] == frames.PREEMPT:
            self._notice.give(frame[1].decode())
        return frame
