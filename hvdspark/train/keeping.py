"""What lies in the store of a run while it is trained, what stays of it when it ends early, and what a later fit finds.

A run that has a name is recorded before its ranks start: whatever ends it, a fit of the same name goes on with its
newest checkpoint, on the very rows that were written for it. Of a run without a name nothing stays but its model, or,
where its ranks were asked to make room, what a run with a name leaves.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from hvdspark.data.dataset import cache, leases
from hvdspark.errors import CheckpointError, ConfigurationError, StoreError
from hvdspark.specs import from_json, to_json
from hvdspark.store import MANIFEST, Store
from hvdspark.train.claim import claimed
from hvdspark.train.fence import newest
from hvdspark.train.places import name_of, place_of
from hvdspark.train.program import TrainResult
from hvdspark.train.run_record import RunRecord, check_same, read_record, write_record

logger = logging.getLogger(__name__)

_RESULT = "result.json"


class Keeping(Protocol):
    """What stays of a run.

    Attributes:
        before: what the run is, where an earlier fit has begun it.
        result: of a run that an earlier fit has finished.
        generation: number of its next launch.
    """

    before: RunRecord | None
    result: TrainResult | None
    generation: int

    def begin(self, record: RunRecord) -> None:
        """Ranks are about to start, unless there is a result.

        Raises:
            ConfigurationError: the run is another one, or another driver has it.
            StoreError.
        """

    def holding(self) -> contextlib.AbstractContextManager[None]:
        """While ranks run."""

    def launched(self, generation: int) -> None:
        """Ranks are started. Raises StoreError."""

    def made_room(self) -> str:
        """Ranks have made room, as the user asked; how to go on. Raises StoreError."""

    def failed(self, error: BaseException) -> None:
        """The run has ended early; never fails."""

    def finished(self, result: TrainResult) -> None:
        """The trained model is in the store. Raises StoreError where the run could not be found again."""


class PassingRun:
    """A run without a name: see the module."""

    before: RunRecord | None = None
    result: TrainResult | None = None
    generation = 0

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id, self._folder = store, run_id, f"{leases.RUNS}/{run_id}"
        self._record: RunRecord | None = None

    def begin(self, record: RunRecord) -> None:
        self._record = record

    def holding(self) -> contextlib.AbstractContextManager[None]:
        return cache.leased(self._store, self._folder)

    def launched(self, generation: int) -> None:
        if self._record is not None:
            self._record = replace(self._record, generation=generation)

    def made_room(self) -> str:
        if self._record is not None:
            _record(self._store, self._run_id, self._record)
        self._store.delete(leases.file_of(self._folder))  # whoever goes on with it may do so
        return _how_to_go_on(self._run_id)

    def failed(self, error: BaseException) -> None:
        say_what_is_lost(self._store, self._run_id, error)
        cache.discard(self._store, self._folder)

    def finished(self, result: TrainResult) -> None:
        _delete_what_is_of_no_use(self._store, self._folder)


class NamedRun:
    """A run with a name: see the module."""

    def __init__(self, store: Store, run_id: str, check_claim: Callable[[], None]) -> None:
        """Look for what there is of it.

        Raises:
            StoreError, CheckpointError: that cannot be read.
        """
        self._store, self._run_id, self._folder = store, run_id, f"{leases.RUNS}/{run_id}"
        self._check_claim = check_claim
        self._record = self.before = read_record(store, run_id)
        # Its last launch may be newer than what is recorded of it.
        last = -1 if self.before is None else max(self.before.generation, newest(store, self._folder))
        self.generation = last + 1
        self.result = None if self.before is None else self._result()

    def begin(self, record: RunRecord) -> None:
        if self.before is not None:
            check_same(self._run_id, self.before, record.settings, record.epochs)
            if self.result is not None:
                check_finished(self._run_id, self.before, record)
                logger.warning("run %s is finished already: its model is returned, and nothing trained", self._run_id)
                self._clear(self.before)  # whoever finished it may have been killed before that
                return
        self._check_claim()
        self._record = replace(record, generation=self.generation)
        _record(self._store, self._run_id, self._record)

    def holding(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # it is claimed for longer

    def launched(self, generation: int) -> None:
        if self._record is not None and self._record.generation != generation:
            self._record = replace(self._record, generation=generation)
            write_record(self._store, self._run_id, self._record)

    def made_room(self) -> str:
        return _how_to_go_on(self._run_id)

    def failed(self, error: BaseException) -> None:
        logger.warning("run %s stays in the store: %s", self._run_id, _how_to_go_on(self._run_id))

    def finished(self, result: TrainResult) -> None:
        self._store.write_text(f"{self._folder}/{_RESULT}", to_json(result))
        if self._record is not None:
            self._clear(self._record)

    def _clear(self, record: RunRecord) -> None:
        _delete_what_is_of_no_use(self._store, self._folder)
        with _said("the rows of a run"):
            cache.no_longer_for(self._store, record.dataset.path, self._run_id)

    def _result(self) -> TrainResult | None:
        if not self._store.exists(f"{self._folder}/{_RESULT}") or not self._store.exists(
            f"{self._folder}/model/{MANIFEST}"
        ):
            return None
        try:
            return from_json(TrainResult, self._store.read_text(f"{self._folder}/{_RESULT}"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                "the result of a run cannot be read",
                value=str(error),
                where=self._store.spark_uri(f"{self._folder}/{_RESULT}"),
                hint="give another name, or delete the run's directory",
            ) from error


@contextlib.contextmanager
def named(store: Store, run_id: str, on_lost: Callable[[str], None]) -> Iterator[NamedRun]:
    """The run of this name, which no other driver may touch while the context lasts.

    Args:
        on_lost: called in a thread where another driver has claimed it nevertheless.

    Raises:
        ConfigurationError: somebody is training it.
        StoreError, CheckpointError: what there is of it cannot be read.
    """
    with claimed(store, run_id, on_lost) as claim:
        yield NamedRun(store, run_id, claim.check)


def check_finished(run_id: str, before: RunRecord, now: RunRecord) -> None:
    """Refuse to take the model of a finished run for that of this fit.

    Raises:
        ConfigurationError: more epochs are asked for, or the rows are others.
    """
    if now.epochs > before.epochs:
        raise ConfigurationError(
            f"run {run_id!r} is finished after {before.epochs} epochs, and its checkpoints are deleted",
            value=now.epochs,
            where="epochs",
            hint="begin a new run with its model: warmStartFrom",
        )
    if now.dataset.fingerprint != before.dataset.fingerprint:
        raise ConfigurationError(
            f"run {run_id!r} is finished, with other rows", where="run_id", hint="give another name for a new run"
        )


def say_what_is_lost(store: Store, run_id: str, error: BaseException) -> None:
    """Warn of the newest checkpoint of a run without a name, which is about to be deleted because that has ended early.

    Never fails.
    """
    with contextlib.suppress(StoreError):
        names = store.list(f"runs/{run_id}/checkpoints")
        if places := sorted(place for name in names if (place := place_of(name)) is not None):
            logger.warning(
                "the fit %s: %s, its newest checkpoint, is deleted with it; that of a fit with a runId stays",
                "has failed" if isinstance(error, Exception) else "was interrupted",
                name_of(places[-1]),
            )


def _record(store: Store, run_id: str, record: RunRecord) -> None:
    cache.keep_for(store, record.dataset.path, run_id)  # it counts once there is a record
    write_record(store, run_id, record)


def _how_to_go_on(run_id: str) -> str:
    return f"fit the same rows with runId={run_id!r} and the same settings to go on with its newest checkpoint"


def _delete_what_is_of_no_use(store: Store, path: str) -> None:
    for of_training in cache.OF_TRAINING:
        with _said("what a fit wrote"):
            store.delete(f"{path}/{of_training}")


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """What is left is in nobody's way; an error here would lose a trained model."""
    try:
        yield
    except StoreError as error:
        logger.warning("%s could not be deleted: %s", what, error)
