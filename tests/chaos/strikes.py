"""Faults, done to the processes of a run at the moments that were drawn."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hvdspark.store import MANIFEST
from hvdspark.train.checkpoint_write import PARTS
from tests.chaos.counted import RECORD, steps_file
from tests.chaos.drawn import ALL_TASKS, DRIVER, RANK, SAVE, START, STORE, Fault
from tests.chaos.weak_store import has_failed, let_fail

_POLL_S, _LOOK_S = 0.004, 0.5
# Restarts without a new checkpoint in between that estimators bear where nothing is said: nobody dies more often.
MOST_IN_A_ROW = 3


@dataclass
class Blow:
    """What became of a fault.

    Attributes:
        fault: what was drawn.
        attempt, generation: that it struck; -1: it never did, the run was over before, or wrote nothing more.
        at_s: when, CLOCK_MONOTONIC.
        damaged: the file that was damaged, relative to the run's directory; "" for none.
        again_s: seconds until the next generation began; None: none did, or nobody has died.
        recovered_s: seconds until a generation did its first step; None: none did before the next fault, or nobody
            has died.
    """

    fault: Fault
    attempt: int = -1
    generation: int = -1
    at_s: float = 0.0
    damaged: str = ""
    again_s: float | None = None
    recovered_s: float | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Attempt:
    """A driver's process.

    Attributes:
        pid: its; it is this process's child.
        folder: see attempt.py.
        status: its exit status when it is over, else None.
    """

    pid: int
    folder: Path
    number: int
    status: int | None = field(default=None)
    _read: tuple[int, list[dict[str, Any]]] = field(default=(0, []), repr=False)

    def over(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def generation(self) -> tuple[int, float] | None:
        """The newest one, and when it began; None before the first."""
        found = [event for event in self.events() if _begins(event)]
        return (found[-1]["generation"], found[-1]["at"]) if found else None

    def deaths_in_a_row(self) -> int:
        """Generations that have ended since the newest checkpoint; that in which it was written is the first."""
        found = [event["event"] for event in self.events() if event["event"] in ("generation", "checkpoint")]
        since = found[::-1].index("checkpoint") if "checkpoint" in found else len(found) - 1
        return max(0, since)

    def losses(self) -> list[str]:
        """What ended its generations, as far as it counts: kind and cause."""
        return [f"{event['kind']}: {event['cause']}" for event in self.events() if event["event"] == "rank_lost"]

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size != self._read[0]:  # else it is as it was four milliseconds ago
            self._read = size, [json.loads(line) for line in path.read_text().splitlines()]
        return self._read[1]

    def steps(self, generation: int, rank: int = 0) -> list[tuple[float, int, int]]:
        """(when, epoch, global batches done in it) of each step that the rank has done."""
        path = self.folder / steps_file(generation, rank)
        data = path.read_bytes() if path.exists() else b""
        return list(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]))

    def first_steps(self) -> list[float]:
        """When the first step of each generation was done that did any."""
        files = sorted(self.folder.glob("steps-*-0"))
        return [
            RECORD.unpack(data)[0] for path in files if len(data := path.read_bytes()[: RECORD.size]) == RECORD.size
        ]

    def written(self) -> int:
        """Bytes of what it has said and done so far."""
        return sum(path.stat().st_size for path in [*self.folder.glob("steps-*"), *self.folder.glob("events.jsonl")])

    def tasks(self) -> list[psutil.Process]:
        """The processes that keep ranks, by rank."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self.pid).children(), key=lambda child: (child.create_time(), child.pid))
        return []


class Striker:
    """Does faults to attempts of one run, one after the other.

    Args:
        run: directory of the run in its store.
        begin: makes another attempt of the run, of that number.
        still_s: TimeoutError where an attempt says nothing new, and does no step, for so long.
    """

    def __init__(self, run: Path, begin: Callable[[int], Attempt], still_s: float) -> None:
        self._run, self._begin, self._still_s = run, begin, still_s
        self._looked_s = self._changed_s = time.monotonic()
        self._written = 0
        self.attempts: list[Attempt] = [begin(0)]
        self.blows: list[Blow] = []

    def strike(self, faults: Sequence[Fault]) -> None:
        """All of them, and wait for the end of the run."""
        self.blows, behind = [Blow(fault) for fault in faults], -1
        for number, blow in enumerate(self.blows):
            behind = self._weaken(number, blow, behind) if blow.fault.victim == STORE else self._strike(blow, behind)
        for _ in self._while_running():
            pass
        for number, blow in enumerate(self.blows):
            fault, struck = blow.fault, blow.attempt >= 0
            if fault.victim == STORE and struck:
                struck = has_failed(self.attempts[blow.attempt].folder, fault.signal, number)
            if not struck:
                blow.attempt = blow.generation = -1
        self._look_at_recovery()

    def _weaken(self, number: int, blow: Blow, behind: int) -> int:
        """Let writes of a generation later than `behind` fail, from which nobody dies; what comes next may strike the
        same generation."""
        for attempt in self._while_running():
            found = attempt.generation()
            if found is not None and found[0] > behind and self._is_time(blow.fault, attempt, *found):
                let_fail(attempt.folder, blow.fault.signal, number, 1 + blow.fault.index)
                blow.attempt, blow.generation, blow.at_s = attempt.number, found[0], time.monotonic()
                return behind
        return behind

    def _look_at_recovery(self) -> None:
        firsts = [at for attempt in self.attempts for at in attempt.first_steps()]
        begins = [event["at"] for attempt in self.attempts for event in attempt.events() if _begins(event)]
        struck = [blow for blow in self.blows if blow.generation >= 0 and blow.fault.victim != STORE]
        for blow, following in itertools.zip_longest(struck, struck[1:]):
            blow.again_s = min((at - blow.at_s for at in begins if at > blow.at_s), default=None)
            later = min((at for at in firsts if at > blow.at_s), default=math.inf)
            if later < (following.at_s if following is not None else math.inf):
                blow.recovered_s = later - blow.at_s

    def _strike(self, blow: Blow, behind: int) -> int:
        """Do one fault to a generation later than `behind`, and say which generation of its attempt is behind then."""
        fault = blow.fault
        for attempt in self._while_running():
            found = attempt.generation()
            if found is None or found[0] <= behind or not self._is_time(fault, attempt, *found):
                continue
            if fault.victim != DRIVER and attempt.deaths_in_a_row() >= MOST_IN_A_ROW:
                continue
            time.sleep(fault.delay_ms / 1000)
            victims = _victims(fault, attempt)
            if not victims:
                continue
            if fault.damage is not None:
                before = {blow.damaged for blow in self.blows} - {""}
                blow.damaged = damage_newest(self._run / "checkpoints", fault.damage, fault.after, before)
            blow.at_s = time.monotonic()
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.Signals[f"SIG{fault.signal}"])
                    blow.attempt, blow.generation = attempt.number, found[0]
            if fault.victim != DRIVER:
                return found[0]
            while not attempt.over():
                self._tick()
            self.attempts.append(self._begin(attempt.number + 1))
            return -1
        return behind

    def _is_time(self, fault: Fault, attempt: Attempt, generation: int, began_s: float) -> bool:
        if fault.when == START:
            return time.monotonic() - began_s >= fault.after / 1000
        done = len(attempt.steps(generation))
        if fault.when == SAVE and done:
            places = self._run.glob("checkpoints/epoch-*")
            is_written = any(not (place / MANIFEST).exists() for place in places)
            return is_written or any(self._run.glob(f"checkpoints/{PARTS}/*")) or done >= fault.after * 2
        return done >= fault.after

    def _while_running(self) -> Iterator[Attempt]:
        """The present attempt, again and again until it is over."""
        while not self.attempts[-1].over():
            yield self.attempts[-1]
            self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._looked_s > _LOOK_S:
            self._looked_s, written = now, sum(attempt.written() for attempt in self.attempts)
            if written != self._written:
                self._written, self._changed_s = written, now
            elif now - self._changed_s > self._still_s:
                raise TimeoutError
        time.sleep(_POLL_S)  # files of other processes have no event


def _begins(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "generation")


def _victims(fault: Fault, attempt: Attempt) -> list[int]:
    if fault.victim == DRIVER:
        return [attempt.pid]
    tasks = attempt.tasks()
    if not tasks:
        return []
    if fault.victim == ALL_TASKS:
        return [task.pid for task in tasks]
    task = tasks[fault.index % len(tasks)]
    if fault.victim == RANK:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in task.children()[:1]]
        return []
    return [task.pid]


def damage_newest(checkpoints: Path, how: str, seed: int, before: Collection[str] = ()) -> str:
    """Damage a file of the newest complete checkpoint where an older one is complete, too; which, or "".

    Args:
        before: what was damaged before: who has any of that does not count as complete.
    """
    damaged = {checkpoints / path for path in before}
    with contextlib.suppress(FileNotFoundError):  # the run goes on meanwhile
        places = sorted(path for path in checkpoints.glob("epoch-*") if (path / MANIFEST).exists())
        rows = {place: named for place in places if (named := rows_named(checkpoints, place)) is not None}
        if len(rows) < 2:
            return ""
        *older, newest = rows
        older = [place for place in older if not damaged & {*rows[place], *place.iterdir()}]
        if not older:
            return ""
        files = sorted(path for path in newest.iterdir() if path.stat().st_size)
        if any(rows[newest].isdisjoint(rows[place]) for place in older):
            files += sorted(rows[newest])
        if not files:
            return ""
        chosen = random.Random(seed).choice(files)
        data = bytearray(chosen.read_bytes())
        if how == "truncate":
            del data[len(data) // 2 :]
        else:
            data[random.Random(seed).randrange(len(data))] ^= 1 << seed % 8
        chosen.write_bytes(data)
        return str(chosen.relative_to(checkpoints))
    return ""


def rows_named(checkpoints: Path, place: Path) -> set[Path] | None:
    """Files of rows of tables that belong to a complete checkpoint, and maybe to others. None: it is damaged."""
    try:
        tables = json.loads((place / MANIFEST).read_bytes()).get("tables", [])
    except ValueError:
        return None
    return {
        checkpoints / "rows/tables" / str(number) / file["path"]
        for number, table in enumerate(tables)
        for file in table["files"]
        if file["path"] is not None
    }
