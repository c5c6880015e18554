"""Fits that are killed, stopped and damaged as a seed says, and end as if nothing had happened.

    python -m tests.chaos.runner --seed 7 --kills 10              one run, in a few seconds
    python -m tests.chaos.runner --seed 0 --seeds 20 --kills 10   the seeds 0 to 19, one after the other

Each run is one line of JSON: seed, fit, what was done to it, what came of it, seconds from each death to the next step.
What a seed draws is the same everywhere; at which instruction a signal arrives is not, so a failure may need the seed
more than once. `--keep` leaves the run's folder (events, output, store) for reading. Exit status 1: a run was not as it
must be, or they took too long to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from hvdspark.errors import HvdSparkError
from hvdspark.launch.processes import set_child_subreaper
from hvdspark.specs import to_json
from hvdspark.store import Store
from tests.chaos import attempt, warm
from tests.chaos.counted import spec_of, write_rows
from tests.chaos.drawn import DRIVER, STORE, Drawn, draw
from tests.chaos.strikes import MOST_IN_A_ROW, Attempt, Blow, Striker
from tests.chaos.tally import percentile, report
from tests.chaos.verdict import differences, weights_in

_PAUSE_S = 0.004
_STILL_S = 120.0  # on a machine that is busy
_SETTLE_S = 5.0
_STAYS = ("model", "run.json", "result.json")
# Of the seconds from a death to the next step the 95th percentile, where there are so many that it says something.
MOST_RECOVERY_S, _ENOUGH = 15.0, 50


def run_seed(seed: int, kills: int, folder: Path) -> dict[str, Any]:
    """One run; its line of the log.

    "outcome" is "ok"; "stopped", where chance killed a rank twice in one step and the run ended as promised then; or
    "wrong", "hang" or "leak". "why" says more.
    """
    drawn, began_s = draw(seed, kills), time.monotonic()
    line: dict[str, Any] = {"seed": seed, "kills": kills, "fit": asdict(drawn.fit)}
    store = Store((folder / "store").as_uri())
    strikers: list[Striker] = []
    try:
        why = _run(drawn, store, folder, strikers)
        last = strikers[-1]
        promised = ended_twice_in_one_step(why, last.attempts[-1].events(), last.blows)
        outcome = "ok" if not why else "stopped" if promised else "wrong"
    except HvdSparkError as error:
        outcome, why = "wrong", [f"{type(error).__name__}: {error}"]
    except TimeoutError:
        outcome, why = "hang", [f"nothing has happened for {_STILL_S:.0f} s", *_where_they_hang(strikers[-1])]
    left = end_descendants(0.0 if outcome == "hang" else _SETTLE_S)
    blows = strikers[-1].blows
    if left and outcome != "hang":
        outcome, why = ("leak" if outcome == "ok" else outcome), [*why, *(f"left behind: {text}" for text in left)]
    recovered = [blow.recovered_s for blow in blows if blow.recovered_s is not None]
    return {
        **line,
        "struck": sum(blow.generation >= 0 for blow in blows),
        "outcome": outcome,
        "why": why,
        "recovery_s": [round(seconds, 2) for seconds in recovered],
        "losses": [loss[:150] for attempt in strikers[-1].attempts for loss in attempt.losses()],
        "blows": [blow.plain() for blow in blows],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _run(drawn: Drawn, store: Store, folder: Path, strikers: list[Striker]) -> list[str]:
    """What is wrong, after both runs; the striker of each is put into `strikers`."""
    fit = drawn.fit
    data = write_rows(store, fit)

    def begin(run_id: str, number: int) -> Attempt:
        place = folder / run_id / f"attempt-{number}"
        spec = spec_of(fit, store, data, run_id)
        attempt.Plan(fit, to_json(spec), max_restarts=MOST_IN_A_ROW, pause_s=_PAUSE_S).write(place)
        (place / "tmp").mkdir()
        with (place / "output").open("wb") as output:
            return Attempt(warm.forked(partial(_driver, place), output.fileno()), place, number)

    for run_id, faults in (("calm", ()), ("struck", drawn.faults)):
        strikers.append(Striker(folder / "store/runs" / run_id, partial(begin, run_id), _STILL_S))
        strikers[-1].strike(faults)
    why = [problem for striker in strikers for problem in _ended(striker)]
    if not why:
        why = differences(weights_in(fit, store, "runs/calm/model"), weights_in(fit, store, "runs/struck/model"))
        why += [f"left behind: {path}" for path in _files_left(folder)]
    return why


def _where_they_hang(striker: Striker) -> list[str]:
    """The end of the output, to which each process has said where it is."""
    for process in _living():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.1)
    return (striker.attempts[-1].folder / "output").read_text(errors="replace").splitlines()[-200:]


def ended_twice_in_one_step(why: Sequence[str], events: Sequence[dict[str, Any]], blows: Sequence[Blow]) -> bool:
    """Whether the run ended as one whose step itself ends it, and chance did that: the rank that it names was the one
    that was lost in its last two generations, and both were struck.

    Args:
        events: of the last driver.
        blows: of the run.
    """
    said = re.search(r"rank (\d+) has ended in step \d+ twice", why[0]) if len(why) == 1 else None
    lost = [event for event in events if event["event"] == "rank_lost"][-2:]
    struck = {blow.generation for blow in blows if blow.fault.victim not in (DRIVER, STORE)}
    named = said is not None and [event["lost"] for event in lost] == [int(said[1])] * 2
    return named and {event["generation"] for event in lost} <= struck


def _driver(place: Path) -> None:
    os.environ["TMPDIR"] = str(place / "tmp")
    tempfile.tempdir = None
    attempt.main(place)


def _ended(striker: Striker) -> list[str]:
    last = striker.attempts[-1]
    result = last.folder / "result.json"
    if not result.exists():
        return [f"{last.folder.parent.name}: the driver ended with status {last.status} and no result"]
    said = json.loads(result.read_text())
    return [] if said["ok"] else [f"{last.folder.parent.name}: {said['error']}"]


def _files_left(folder: Path) -> list[str]:
    """Temporary files, what was written by halves, and what a run whose model is there needs no more."""
    left = [path for path in folder.glob("*/attempt-*/tmp/**/*") if path.is_file()]
    left += (folder / "store").rglob("*.tmp")
    left += [path for path in folder.glob("store/runs/*/*") if path.name not in _STAYS]
    return [str(path.relative_to(folder)) for path in left]


def end_descendants(wait_s: float) -> list[str]:
    """Command lines of the processes below this one that are still there after `wait_s`, which are ended then.

    Orphans are among them: this process is their reaper.
    """
    deadline_s = time.monotonic() + wait_s
    while (left := _living()) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    texts = []
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            texts.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
    while _living():
        time.sleep(0.02)
    return texts


def _living() -> list[psutil.Process]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return psutil.Process().children(recursive=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.runner", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True, help="the first seed")
    parser.add_argument("--kills", type=int, default=10, help="faults of each run")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from the first on")
    parser.add_argument("--within", type=float, default=float("inf"), help="seconds after which no other seed begins")
    parser.add_argument("--log", type=Path, help="a file to which the lines are added, too")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    set_child_subreaper()
    warm.warm_up()
    began_s, lines = time.monotonic(), []
    for seed in range(asked.seed, asked.seed + asked.seeds):
        if time.monotonic() - began_s > asked.within:
            break
        folder = Path(tempfile.mkdtemp(prefix=f"hvdspark-chaos-{seed}-"))
        try:
            lines.append(run_seed(seed, asked.kills, folder))
        finally:
            end_descendants(0)
            if not asked.keep:
                shutil.rmtree(folder)
        if asked.keep:
            lines[-1]["folder"] = str(folder)
        print(json.dumps(lines[-1]), flush=True)
        if asked.log is not None:
            with asked.log.open("a") as log:
                log.write(json.dumps(lines[-1]) + "\n")
    failed = [line["seed"] for line in lines if line["outcome"] not in ("ok", "stopped")]
    recovered = [seconds for line in lines for seconds in line["recovery_s"]]
    slow = len(recovered) >= _ENOUGH and percentile(recovered, 95) > MOST_RECOVERY_S
    print(report(lines), file=sys.stderr)
    if slow:
        print(f"recovery takes longer than {MOST_RECOVERY_S:.0f} s", file=sys.stderr)
    return int(bool(failed) or slow)


if __name__ == "__main__":
    sys.exit(main())
