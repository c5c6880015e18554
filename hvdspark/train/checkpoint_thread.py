"""The thread that writes one rank's part of a checkpoint, and on rank 0 commits it, while training goes on."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hvdspark.artifact.directory import ArtifactWriter
from hvdspark.errors import CheckpointError

_GIVEN_UP_S = 10.0  # for what is in the middle of a file


@dataclass(frozen=True)
class Part:
    """What one rank has written of a save.

    Attributes:
        rows: of each collection the entries of a manifest.
        bytes: of files of rows.
        seconds: that it took.
        busy_s: seconds of a processor.
        writer: on rank 0, of all but the rows.
    """

    rows: list[list[dict[str, Any]]]
    bytes: int
    seconds: float
    busy_s: float
    writer: ArtifactWriter | None = None


@dataclass(frozen=True)
class Written:
    """What a rank has written; on rank 0 what all have, and that it is committed.

    Attributes:
        bytes: of files.
        seconds: that it took.
        busy_s: seconds of a processor.
        tables: the manifest's.
    """

    bytes: int
    seconds: float
    busy_s: float
    tables: list[dict[str, Any]]


class Writing:
    """A save that is written, by a thread of its own, at a lower priority than training has.

    Args:
        part: writes this rank's; is given what says that it should give up.
        commit: what comes behind that on rank 0; given what was written, and what says that it should give up.
        limit_s: of the part, from now on: a store that does not answer must not keep others from being begun for ever.
        at_once_s: the part is written before training goes on, which waits for so long; None: it goes on at once.

    Attributes:
        error: why there is no part, or no commit.
    """

    def __init__(
        self,
        part: Callable[[threading.Event], Part],
        commit: Callable[[Part, threading.Event], Written],
        *,
        limit_s: float,
        at_once_s: float | None = None,
    ) -> None:
        self._write_part: Callable[[threading.Event], Part] | None = part
        self._commit: Callable[[Part, threading.Event], Written] | None = commit
        self._part: Part | None = None
        self._part_over, self._given_up = threading.Event(), threading.Event()
        self.written: Written | None = None
        self.error: Exception | None = None
        self._began = time.monotonic()
        self._until = self._began + limit_s
        at_once = at_once_s is not None
        self._thread = threading.Thread(target=self._work, args=(at_once,), name="hvdspark-checkpoint", daemon=True)
        self._thread.start()
        if at_once_s is not None:
            self.wait_for_part(at_once_s)

    @property
    def is_part_over(self) -> bool:
        """Whether this rank's part is written, has failed, or is late."""
        return self._part_over.is_set() or time.monotonic() > self._until

    @property
    def is_over(self) -> bool:
        """Whether it is written, or has failed."""
        return not self._thread.is_alive()

    def wait_for_part(self, limit_s: float) -> None:
        """Until this rank's part is over. What is not over in time is given up, and an error."""
        if self._given_up.is_set():
            return  # it was waited for
        if not self._part_over.wait(min(limit_s, max(0.0, self._until - time.monotonic()))):
            self._too_late()

    def wait(self, limit_s: float) -> None:
        """Until all is over. What is not over in time is given up, and an error."""
        if self._given_up.is_set():
            return  # it was waited for
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._too_late()

    def give_up(self) -> None:
        """Another rank could not write its part: wait for nobody's any more."""
        if not self._given_up.is_set():
            self._given_up.set()
            self._thread.join(_GIVEN_UP_S)

    def _too_late(self) -> None:
        self._given_up.set()
        seconds = time.monotonic() - self._began
        self.error = CheckpointError(
            f"a checkpoint is not written after {seconds:.0f} s", hint="the store does not answer"
        )

    def _work(self, at_once: bool) -> None:
        if not at_once:
            _yield_to_training()
        self._write()
        _yield_to_training()
        commit, self._commit = self._commit, None  # what was copied goes when it is written
        if self._part is None or commit is None:
            return
        try:
            self.written = commit(self._part, self._given_up)
        except Exception as error:  # the trainer's thread asks for it
            self.error = self.error or error

    def _write(self) -> None:
        part, self._write_part = self._write_part, None
        assert part is not None, "it is written once"
        try:
            self._part = part(self._given_up)
        except Exception as error:  # the trainer's thread asks for it
            self.error = self.error or error
        finally:
            self._part_over.set()


def _yield_to_training() -> None:
    """Let this thread have what time is left on the processors."""
    with contextlib.suppress(OSError, AttributeError):  # not everywhere, and not for everybody
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
