"""Runs the tests in two processes, because Spark's tests often wait.

    python -m tests.side_by_side [arguments of pytest]

A process of tests leaks nothing into the other one: `footprint` looks at a process's own descendants and run marker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Takes as long as the rest: all that needs nothing of Spark, and the end of Spark's tests. Everything else, whatever
# folder it is in, is of the other half.
FIRST = (
    *("tests/unit", "tests/test_architecture.py"),
    *("tests/spark/test_s[ht]*.py", "tests/spark/test_[t-z]*.py"),
)
NO_TESTS = 5  # pytest's exit status


def main(arguments: Sequence[str]) -> int:
    """Exit status of pytest, for both halves together."""
    pytest = [sys.executable, "-m", "pytest"]
    if any(Path(argument.partition("::")[0]).exists() for argument in arguments):
        return subprocess.call([*pytest, *arguments])  # it has been said which files
    paths = [str(path) for pattern in FIRST for path in sorted(Path().glob(pattern))]
    with tempfile.TemporaryFile() as output:
        # Tensors of unit tests are too small for threads. What failed last is remembered by each half on its own.
        first = subprocess.Popen(
            [*pytest, "-o", "cache_dir=.pytest_cache/first", *arguments, *paths],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        try:
            others = subprocess.call([*pytest, *(f"--ignore={path}" for path in paths), *arguments])
        finally:
            first.wait()  # where this process is interrupted, it is, too
            output.seek(0)
            print("\n== the first half, which ran beside those above", flush=True)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    if others not in (0, NO_TESTS):
        print(f"\n== the other tests failed (exit status {others}): see above", flush=True)
    return status(first.returncode, others)


def status(*halves: int) -> int:
    """0 when none failed and at least one found tests; otherwise a status that says why not."""
    failed = [code for code in halves if code not in (0, NO_TESTS)]
    if failed:
        return failed[0] if failed[0] > 0 else 1  # a signal has a negative one
    return 0 if 0 in halves else NO_TESTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
