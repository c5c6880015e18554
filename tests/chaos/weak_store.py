"""A store that fails for a while, or is full, while ranks write their checkpoints.

Which errors are to come are files of a folder, each for one write of whichever rank comes first:

    EIO-2-0     of the fault 2, the first of its failures: input and output, which may pass
    ENOSPC-4-0  of the fault 4: no space left
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from hvdspark.train.callbacks import Callback, TrainState


def let_fail(folder: Path, error: str, fault: int, times: int) -> None:
    """Let so many writes of the ranks of an attempt fail.

    Args:
        error: name of an error number.
        fault: its number in the run.
    """
    for number in range(times):
        (folder / f"{error}-{fault}-{number}").touch()


def has_failed(folder: Path, error: str, fault: int) -> bool:
    """Whether a write has met with it."""
    return not (folder / f"{error}-{fault}-0").exists()


class WeakStore(Callback):
    """Lets writes of checkpoints of this rank fail as `let_fail` says."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_train_begin(self, state: TrainState) -> None:
        replace = os.replace

        def replaced(source: Any, target: Any, **options: Any) -> None:
            if "/checkpoints/" in str(target):
                self._fail()
            replace(source, target, **options)

        os.replace = replaced  # type: ignore[assignment]

    def _fail(self) -> None:
        for path in sorted(Path(self._folder).glob("E*-*-*")):
            try:
                path.unlink()
            except FileNotFoundError:  # another rank has come first
                continue
            number = getattr(errno, path.name.partition("-")[0])
            raise OSError(number, os.strerror(number))
