"""A keeper: the process in which a task runs on the driver's host, where Spark would have a Python worker for it.

A process of its own, because the parent of a rank adopts and ends whatever the rank leaves behind, which the driver
must not do to its other children. It ends its rank on SIGTERM, which the kernel sends when the driver dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, BinaryIO

from hvdspark.launch import frames
from hvdspark.launch.addresses import LOOPBACK
from hvdspark.launch.budget import MemoryTerms
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.processes import die_with_parent
from hvdspark.launch.protocol import LaunchSpec
from hvdspark.launch.task import Place, run_task
from hvdspark.specs import from_json

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_AGAIN_S = 0.05


def main(answer_fd: int, parent_pid: int) -> None:
    """Body of the process."""
    signal.signal(signal.SIGTERM, _leave)
    sys.unraisablehook = _leave_again
    die_with_parent(parent_pid, signal.SIGTERM)
    with os.fdopen(0, "rb") as inbox, os.fdopen(answer_fd, "wb") as outbox:
        try:
            _run(inbox, outbox)
        except Exception:
            frames.write_frame(outbox, frames.FAILURE, traceback.format_exc().encode())


def task_frame(spec: LaunchSpec, partition: int) -> bytes:
    """What a keeper is told beside the program."""
    values = asdict(replace(spec, program=b""))
    del values["program"]
    return json.dumps({"partition": partition, "spec": values}).encode()


def outcome_of(body: bytes) -> tuple[int, Outcome]:
    """(rank, outcome) in what a keeper says last."""
    text, _, result = body.partition(b"\n")
    values = json.loads(text)
    return values.pop("rank"), Outcome(**values, result=result)


def _outcome_frame(rank: int, outcome: Outcome) -> bytes:
    return json.dumps({"rank": rank, **outcome.without_result()}).encode() + b"\n" + outcome.result


def _run(inbox: BinaryIO, outbox: BinaryIO) -> None:
    told = json.loads(_expect(inbox, frames.TASK))
    channel, memory = told["spec"].pop("channel"), told["spec"].pop("memory")
    program = _expect(inbox, frames.PROGRAM)
    spec = LaunchSpec(
        program=program,
        channel=None if channel is None else tuple(channel),
        memory=from_json(MemoryTerms, json.dumps(memory)),
        **told["spec"],
    )

    def meet(text: str) -> Sequence[str]:
        frames.write_frame(outbox, frames.INTRODUCTION, text.encode())
        answers: list[str] = json.loads(_expect(inbox, frames.INTRODUCTION))
        return answers

    place = Place(
        partition=told["partition"],
        addresses=[LOOPBACK] * spec.world_size,
        threads=max(1, (os.cpu_count() or 1) // spec.world_size),
        gpus=(),
        gpu_scheduled=True,  # nobody assigns any: ranks choose by their local rank
        meet=meet,
    )
    world, outcome = run_task(spec, place)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to end
    frames.write_frame(outbox, frames.OUTCOME, _outcome_frame(world.rank, outcome))


def _expect(inbox: BinaryIO, kind: bytes) -> bytes:
    frame = frames.read_frame(inbox)
    if frame is None or frame[0] != kind:
        sys.exit(1)  # the driver has gone or given up
    return frame[1]


def _leave(*_: object) -> None:
    """End the rank on the way out."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _leave_again(dropped: UnraisableHookArgs) -> None:
    """Python drops what is raised while it calls a finalizer, or the hooks of a fork: a signal may come just then."""
    if dropped.exc_type is not SystemExit:
        sys.__unraisablehook__(dropped)
        return
    signal.signal(signal.SIGTERM, _leave)
    threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)).start()
