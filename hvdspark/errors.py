"""Every exception a user of hvdspark can meet.

One class for each decision a caller can take. A message always says what is wrong, the value that is wrong,
where it is, and what to do about it:

    >>> str(SchemaError("column not found", value="agee", where="featureCols", hint="did you mean 'age'?"))
    "column not found: 'agee' (in featureCols). Hint: did you mean 'age'?"
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

__all__ = [
    "CheckpointError",
    "ClusterError",
    "CollectiveTimeoutError",
    "ConfigurationError",
    "DataError",
    "DependencyError",
    "FitCancelledError",
    "HvdSparkError",
    "MemoryBudgetError",
    "NotEnoughSlotsError",
    "PersistenceError",
    "PreemptedError",
    "RankFailedError",
    "SchemaError",
    "StartTimeoutError",
    "StoreError",
    "TrainingDivergedError",
    "UnknownParamError",
]


class HvdSparkError(Exception):
    """Base of all hvdspark errors.

    Args:
        what: what is wrong, in a few words, without a final dot.
        value: the offending value; shown with repr() unless it is a plain sentence with spaces.
        where: the Param, column, file, host or rank that the value belongs to.
        hint: what to do now.
    """

    def __init__(self, what: str, *, value: Any = None, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.value, self.where, self.hint = what, value, where, hint
        super().__init__(self._message())

    def reword(self, words: Callable[[str], str]) -> None:
        """Say the same with other names of what can be set; the value stays."""
        said = self._message()
        self.what = words(self.what)
        self.where, self.hint = (None if text is None else words(text) for text in (self.where, self.hint))
        self.args = (self.args[0].replace(said, self._message()), *self.args[1:])

    def tell(self, more: str) -> None:
        """Add a paragraph to what the message says."""
        self.args = (f"{self.args[0]}\n{more}", *self.args[1:])

    def _message(self) -> str:
        message = self.what
        if self.value is not None:
            plain = isinstance(self.value, str) and " " in self.value
            message += f": {self.value}" if plain else f": {self.value!r}"
        if self.where is not None:
            message += f" (in {self.where})"
        if self.hint is not None:
            message += f". Hint: {self.hint}"
        return message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword arguments do not survive Exception's own pickling, and these cross process boundaries.
        return _rebuild, (type(self), self.__dict__.copy(), self.args)


def _rebuild(cls: type[HvdSparkError], attributes: dict[str, Any], args: tuple[Any, ...]) -> HvdSparkError:
    error = cls.__new__(cls)
    Exception.__init__(error, *args)
    error.__dict__.update(attributes)
    return error


class ConfigurationError(HvdSparkError, ValueError):
    """A Param or argument is out of range, unknown, or contradicts another one."""


class UnknownParamError(ConfigurationError, TypeError):
    """An unknown keyword argument."""


class DependencyError(HvdSparkError, RuntimeError):
    """Java, a Python package or a native library is missing or of the wrong version."""


class SchemaError(HvdSparkError, ValueError):
    """A column is missing or has a type that cannot be used."""


class DataError(HvdSparkError, ValueError):
    """The rows themselves cannot be used: none, nulls, vectors of different lengths, labels out of range."""


class StoreError(HvdSparkError, OSError):
    """The store cannot be reached, read or written.

    Attributes:
        attempts: how often that was tried.
    """

    attempts = 1


class CheckpointError(HvdSparkError, RuntimeError):
    """A checkpoint or saved model is missing, incomplete, damaged or of a newer format."""


class PersistenceError(HvdSparkError, RuntimeError):
    """An estimator or model cannot be saved or loaded safely."""


class ClusterError(HvdSparkError):
    """The Spark session cannot run the job as it is configured."""

    # Not a RuntimeError: a class that is both that and, like StartTimeoutError, an OSError cannot be unpickled.


class NotEnoughSlotsError(ClusterError):
    """Fewer task slots than ranks: a barrier stage would wait for them in silence."""


class StartTimeoutError(ClusterError, TimeoutError):
    """The ranks did not all start within the start timeout."""


class CollectiveTimeoutError(HvdSparkError, TimeoutError):
    """A rank waited too long for the others in an exchange."""


class TrainingDivergedError(HvdSparkError, ArithmeticError):
    """The loss became NaN or infinite."""


class FitCancelledError(HvdSparkError, CancelledError):
    """`FitHandle.cancel` has ended the fit; also a `concurrent.futures.CancelledError`."""


class MemoryBudgetError(HvdSparkError, RuntimeError):
    """A rank, or its embedding tables, would take more memory than it was given. Its executor goes on.

    Attributes:
        table: whose rows had no room; None where it was something else in the rank.
        rows: that the table has on the rank.
        bytes: that the tables, or the rank, would have taken or had taken; 0 where that is not known.
        limit: bytes that it may take.
        setting: what limits it, e.g. "spark.executor.memoryOverhead".
    """

    def __init__(
        self,
        what: str,
        *,
        table: str | None = None,
        rows: int = 0,
        bytes: int = 0,
        limit: int = 0,
        setting: str = "",
        value: Any = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.table, self.rows, self.bytes, self.limit, self.setting = table, rows, bytes, limit, setting
        super().__init__(what, value=value, where=where, hint=hint)


class PreemptedError(HvdSparkError, RuntimeError):
    """Ranks were asked to make room: all have stopped after the same step, and what they did is in a checkpoint.

    Attributes:
        run_id: of a fit, which goes on from the checkpoint where it is given as the Param runId; else "".
    """

    def __init__(
        self,
        what: str,
        *,
        value: Any = None,
        where: str | None = None,
        hint: str | None = None,
        run_id: str = "",
    ) -> None:
        self.run_id = run_id
        super().__init__(what, value=value, where=where, hint=hint)


class RankFailedError(HvdSparkError, RuntimeError):
    """A rank failed; this is the first one that did so by itself.

    Attributes:
        rank: global rank, or None where the failure came before ranks were given out.
        host: host name of the executor.
        cause: one line: exception type and message, signal, or exit code.
        kind: "exception" | "exit" | "signal" | "executor_lost" | "peer_lost" | "preempted" | "memory".
        traceback_text: the rank's own traceback, where there is one.
        tail: last lines of the rank's output.
        step: in which the rank was, where it has said so (`RankContext.reached`).
    """

    def __init__(
        self,
        rank: int | None,
        host: str,
        cause: str,
        *,
        kind: str,
        traceback_text: str = "",
        tail: str = "",
        hint: str | None = None,
        step: int | None = None,
    ) -> None:
        self.rank, self.host, self.cause, self.kind, self.step = rank, host, cause, kind, step
        self.traceback_text, self.tail = traceback_text, tail
        who = "an executor" if rank is None else f"rank {rank}"
        details = ""
        if traceback_text:
            details += f"\n--- traceback of {who} ---\n{traceback_text.rstrip()}"
        if tail:
            details += f"\n--- last output of {who} ---\n{tail.rstrip()}"
        super().__init__(f"{who} on host {host} failed: {cause}", hint=hint)
        if details:
            self.args = (self.args[0] + details,)
