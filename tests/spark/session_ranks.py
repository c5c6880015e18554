"""What ranks and the doctor do in a session of any kind. `test_any_session.py` runs each where there is one."""

from __future__ import annotations

import importlib
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyspark.sql import SparkSession

import hvdspark
from hvdspark.doctor import gather
from hvdspark.errors import DependencyError, NotEnoughSlotsError, RankFailedError, StartTimeoutError
from hvdspark.launch import interruptible, new_tag
from hvdspark.session import session_of

_MORE_THAN_A_MESSAGE = 6 << 20  # of Connect


def ranks_meet_and_return_what_they_like(spark: SparkSession) -> None:
    def program(text: str) -> tuple[int, int, bytes]:
        collective = hvdspark.context().collective
        return collective.rank, collective.size, text.encode() * _MORE_THAN_A_MESSAGE

    answers = hvdspark.run(program, ["x"], num_workers=2, spark=spark)
    assert [(rank, size, len(text)) for rank, size, text in answers] == [
        (0, 2, _MORE_THAN_A_MESSAGE),
        (1, 2, _MORE_THAN_A_MESSAGE),
    ]


def code_that_is_shipped_reaches_the_ranks(spark: SparkSession, folder: str) -> None:
    name = f"shipped_{uuid.uuid4().hex}"
    (Path(folder) / f"{name}.py").write_text("def answer():\n    return __name__\n")
    sys.path.insert(0, folder)
    try:
        program = importlib.import_module(name).answer
    finally:
        sys.path.remove(folder)
    with pytest.raises(DependencyError, match=f"cannot be imported on the executors.*{name}.*Hint.*addArtifact"):
        hvdspark.run(program, num_workers=2, spark=spark)
    spark.addArtifact(f"{folder}/{name}.py", pyfile=True)
    assert hvdspark.run(program, num_workers=2, spark=spark) == [name, name]


def more_ranks_than_slots_are_refused(spark: SparkSession) -> None:
    slots = session_of(spark).slots()
    assert slots is not None
    with pytest.raises(NotEnoughSlotsError, match=f"the session has {slots}.*master local.*lower num_workers to"):
        hvdspark.run(os.getpid, num_workers=slots + 1, spark=spark)


def ranks_that_get_no_slots_give_up(spark: SparkSession, folder: str) -> None:
    slots = session_of(spark).slots() or 2
    holds, done = Path(folder) / "holds", Path(folder) / "done"

    def hold(batches: Iterable[Any]) -> Iterator[Any]:
        holds.touch()
        deadline = time.monotonic() + 60
        while not done.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield from batches

    held = spark.range(0, slots, 1, slots).mapInArrow(hold, "id long")
    thread = threading.Thread(target=held.collect)
    thread.start()
    try:
        while thread.is_alive() and not holds.exists():
            time.sleep(0.05)
        with pytest.raises(StartTimeoutError, match="0 of 2 ranks started within 6 s.*Hint: other jobs"):
            hvdspark.run(os.getpid, num_workers=2, start_timeout_s=6, spark=spark)
    finally:
        done.touch()
        thread.join()
    assert len(hvdspark.run(os.getpid, num_workers=2, spark=spark)) == 2


def a_failure_names_its_rank(spark: SparkSession) -> None:
    def program() -> None:
        if hvdspark.context().rank == 1:
            raise ValueError("only here")
        time.sleep(60)

    with pytest.raises(RankFailedError, match="ValueError: only here") as failed:
        hvdspark.run(program, num_workers=2, spark=spark)
    assert failed.value.rank == 1


def an_interrupt_frees_the_executors(spark: SparkSession) -> None:
    """Called in the main thread, as Ctrl-C is."""
    pids: list[int] = []

    def busy() -> None:
        hvdspark.context().report({"event": "busy", "pid": os.getpid()})
        time.sleep(600)

    def heard(event: dict[str, Any]) -> None:
        if event["event"] == "busy":
            pids.append(event["pid"])
            if len(pids) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hvdspark.run(busy, num_workers=2, spark=spark, on_event=heard)
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not alive

    def same(batches: Iterable[Any]) -> Iterator[Any]:
        yield from batches

    both = spark.range(0, 2, 1, 2).mapInArrow(same, "id long", barrier=True)
    assert len(interruptible(spark, both.collect, new_tag())) == 2, "the slots are free again"


def the_doctor_asks_the_workers(spark: SparkSession) -> None:
    found = gather().session
    assert found is not None
    assert found.workers_error is None
    assert {facts.versions["Python"] for facts in found.workers} == {platform.python_version()}
    assert spark.range(2).count() == 2, "the session is kept"
