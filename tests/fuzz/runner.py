"""A seeded fuzzer: each input is a clean error, ignored, or what it says; nothing hangs, crashes or takes memory.

    python -m tests.fuzz.runner --seed 7 --count 500 --targets "saved model" parquet

Runs in a process of its own, which may have little memory and has a limit of seconds for each input, and says on each
line of its output what came of one input. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from hvdspark.errors import HvdSparkError
from tests.fuzz.saved_stage import SavedStage
from tests.fuzz.stored import Leases, ParquetFile, RunningCheckpoints, SavedModel
from tests.fuzz.target import WRONG, Target
from tests.fuzz.told import Channel, Frames, Rendezvous, Specs

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (SavedModel, SavedStage, RunningCheckpoints, Leases, ParquetFile, Rendezvous, Channel, Frames, Specs)
}
REFUSED = "refused"
_LIMIT_S = 20.0
_MORE_MEMORY = 1 << 30
_LONGEST_MESSAGE = 5000


def fuzz(name: str, seed: int, count: int, folder: Path) -> list[dict[str, object]]:
    """What came of `count` inputs of a target; what is wrong has "failure"."""
    target = TARGETS[name](folder)  # type: ignore[call-arg]
    results = []
    try:
        for number in range(count):
            rng = random.Random(f"{seed}/{name}/{number}")
            words, use = target.attempt(rng)
            print(f"# {name} {number}: {words}", file=sys.stderr, flush=True)  # the last one, should the process end
            faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
            began = time.monotonic()
            result: dict[str, object] = {"target": name, "number": number, "words": words}
            try:
                result["verdict"] = use()
                if result["verdict"] == WRONG:
                    result["failure"] = "a wrong result"
            except (HvdSparkError, *target.refusals) as error:
                result.update(verdict=REFUSED, message=f"{type(error).__name__}: {error}")
                if not str(error).strip() or len(str(error)) > _LONGEST_MESSAGE:
                    result["failure"] = f"a message of {len(str(error))} characters"
            except BaseException as error:
                result.update(verdict="crashed", failure="".join(traceback.format_exception(error))[-3000:])
            finally:
                faulthandler.cancel_dump_traceback_later()
            result["seconds"] = round(time.monotonic() - began, 3)
            results.append(result)
    finally:
        target.close()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=500, help="inputs of all targets together")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    faulthandler.enable()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _MORE_MEMORY, resource.RLIM_INFINITY))
    verdicts: collections.Counter[str] = collections.Counter()
    failed = 0
    for name in options.targets:
        with tempfile.TemporaryDirectory(prefix="hvdspark-fuzz-") as folder:
            for result in fuzz(name, options.seed, -(-options.count // len(options.targets)), Path(folder)):
                verdicts[f"{name}: {result['verdict']}"] += 1
                failed += "failure" in result
                print(json.dumps(result), flush=True)
    print(json.dumps({"seed": options.seed, "failed": failed, "verdicts": verdicts}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
