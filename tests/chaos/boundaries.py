"""A fit that dies at each boundary of saving a checkpoint: before a file is there, and when it is.

    python -m tests.chaos.boundaries [--save 2]

One run for each write and each deletion of that save on each rank, which are first counted in an undisturbed run; a
line of JSON for each, as of the runner.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import hvdspark
from hvdspark.launch.processes import set_child_subreaper
from hvdspark.specs import to_json
from hvdspark.store import MANIFEST, Store
from hvdspark.train.callbacks import Callback, TrainState
from tests.chaos import attempt, warm
from tests.chaos.counted import spec_of, write_rows
from tests.chaos.drawn import Fit
from tests.chaos.runner import end_descendants
from tests.chaos.strikes import Attempt, Striker
from tests.chaos.verdict import differences, weights_in

FIT = Fit(
    size=2,
    model="sharded",
    optimizer="adam",
    accumulation=1,
    random_layers=False,
    steps=8,
    batch_size=16,
    epochs=2,
    groups=3,
    shuffle=True,
    validation=False,
    interval_steps=3,
    seed=1,
)
_STILL_S = 120.0
BEFORE, AFTER = "before", "after"


class AtWrite(Callback):
    """Writes down, on each rank of the first generation, what is written to checkpoints; and dies at one of them.

    Args:
        folder: of the lists, `writes-0`, `writes-1`, ...
        rank, number, when: who dies at which of its changes, BEFORE or AFTER it; None: nobody does.
    """

    def __init__(self, folder: str, death: tuple[int, int, str] | None) -> None:
        self._folder, self._death, self._count = folder, death, 0

    def on_train_begin(self, state: TrainState) -> None:
        if hvdspark.context().generation:
            return
        replace, delete = os.replace, Store.delete
        self._rank = state.rank
        self._list = os.open(Path(self._folder, f"writes-{state.rank}"), os.O_WRONLY | os.O_CREAT, 0o600)

        def replaced(source: Any, target: Any, **options: Any) -> None:
            self._change(str(target), lambda: replace(source, target, **options))

        def deleted(store: Store, path: str) -> None:
            self._change(f"deleted {path}", lambda: delete(store, path))

        os.replace = replaced  # type: ignore[assignment]
        Store.delete = deleted  # type: ignore[method-assign]

    def _change(self, what: str, act: Any) -> None:
        if "checkpoints/" not in what:
            act()
            return
        number, self._count = self._count, self._count + 1
        os.write(self._list, f"{what}\n".encode())
        self._die_if((self._rank, number, BEFORE))
        act()
        self._die_if((self._rank, number, AFTER))

    def _die_if(self, now: tuple[int, int, str]) -> None:
        if self._death == now:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, store: Store, spec_json: str, death: tuple[int, int, str] | None) -> Striker:
    """A run to its end."""

    def begin(number: int) -> Attempt:
        place = folder / f"attempt-{number}"
        attempt.Plan(FIT, spec_json, max_restarts=3, pause_s=0.0).write(place)
        more = AtWrite(str(place), death)
        with (place / "output").open("wb") as output:
            return Attempt(warm.forked(partial(attempt.main, place, more), output.fileno()), place, number)

    striker = Striker(folder, begin, _STILL_S)
    striker.strike(())
    return striker


def of_save(lines: list[str], save: int) -> list[tuple[int, str]]:
    """Which of a rank's changes belong to that save, from 2 on, and at which end of each it dies.

    Of the files of rows, the first and the last. After a file is as before the next one, but behind the manifest.
    """
    numbers = [number for number, place in enumerate(_saves(lines)) if place == save]
    rows = [number for number in numbers if "/tables/" in lines[number] and "buckets" in lines[number]]
    chosen = [number for number in numbers if number not in rows[1:-1]]
    return [(n, BEFORE) for n in chosen] + [(n, AFTER) for n in chosen if lines[n].endswith(MANIFEST)]


def _saves(lines: list[str]) -> list[int]:
    """Of each change, to which save it belongs, from 1: that at whose place something was changed first."""
    places: list[str] = []
    saves = []
    for line in lines:
        place = re.search(r"epoch-\d+(-step-\d+)?", line)
        if place is not None and place[0] not in places:  # else it is dropped behind the present one
            places.append(place[0])
        saves.append(len(places))
    return saves


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.boundaries", description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=int, default=2, help="which save of the run, from 2")
    asked = parser.parse_args()
    set_child_subreaper()
    warm.warm_up()
    folder = Path(tempfile.mkdtemp(prefix="hvdspark-boundaries-"))
    store = Store((folder / "store").as_uri())
    data, wrong = write_rows(store, FIT), 0
    try:
        calm = run(folder / "calm", store, to_json(spec_of(FIT, store, data, "calm")), None).attempts[-1].folder
        expected = weights_in(FIT, store, "runs/calm/model")
        lists = [(calm / f"writes-{rank}").read_text().splitlines() for rank in range(FIT.size)]
        deaths = [
            (rank, number, when) for rank, lines in enumerate(lists) for number, when in of_save(lines, asked.save)
        ]
        for death in deaths:
            name = "-".join(map(str, death))
            last = run(folder / name, store, to_json(spec_of(FIT, store, data, name)), death).attempts[-1]
            said = json.loads((last.folder / "result.json").read_text())
            why = (
                [said["error"]]
                if not said["ok"]
                else differences(expected, weights_in(FIT, store, f"runs/{name}/model"))
            )
            found = last.generation()
            if found is None or found[0] != 1:
                why.append(f"generation {found}: {last.losses()}")
            where = lists[death[0]][death[1]].partition("checkpoints/")[2]
            line = {"rank": death[0], "when": death[2], "what": where, "outcome": "wrong" if why else "ok", "why": why}
            print(json.dumps(line), flush=True)
            wrong += bool(why)
    finally:
        end_descendants(0)
        shutil.rmtree(folder)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
