"""The driver's side of a training run: what lies in the store meanwhile, the launch, what is deleted afterwards."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvdspark import launch
from hvdspark.artifact.weights import write_weights
from hvdspark.data.dataset import cache
from hvdspark.errors import StoreError
from hvdspark.specs import TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.on_rank import initial_weights, train_on_rank
from hvdspark.train.pickling import Packed
from hvdspark.train.places import name_of, place_of
from hvdspark.train.program import Program, TrainResult

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gang:
    """How ranks are launched: arguments of `hvdspark.run` of the same names."""

    num_workers: int
    min_workers: int | None
    max_workers: int | None
    device: str
    env: Mapping[str, str]
    start_timeout_s: float
    stall_timeout_s: float
    max_restarts: int


def train_on_ranks(
    spark: SparkSession,
    spec: TrainSpec,
    packed: Packed[Program],
    gang: Gang,
    report: Callable[[dict[str, Any]], None],
    preemption: launch.Preemption,
) -> TrainResult:
    """Launch ranks that train a program; its trained model is in the store when this returns.

    When training fails, what the run wrote into the store is deleted; the error is the one of `hvdspark.run`.

    Args:
        report: takes what ranks and the launcher report, in a thread.
        preemption: asks the ranks to make room.
    """
    store, run = Store(spec.store_uri), f"runs/{spec.run_id}"
    try:
        with cache.leased(store, run):
            results = launch.run(
                train_on_rank,
                (to_json(spec), send(store, spec.run_id, packed)),
                num_workers=gang.num_workers,
                min_workers=gang.min_workers,
                max_workers=gang.max_workers,
                spark=spark,
                device=gang.device,
                store_uri=spec.store_uri,
                env=gang.env,
                start_timeout_s=gang.start_timeout_s,
                stall_timeout_s=gang.stall_timeout_s,
                max_restarts=gang.max_restarts,
                on_event=report,
                preemption=preemption,
            )
    except BaseException as error:
        say_what_is_lost(store, spec.run_id, error)
        cache.discard(store, run)
        raise
    for finished in (f"{run}/checkpoints", initial_weights(spec.run_id)):
        _delete(store, finished)
    return from_json(TrainResult, results[0])


def send(store: Store, run_id: str, packed: Packed[Program]) -> bytes:
    """The program for `train_on_rank` without its module's weights, which are written into the store."""
    write_weights(store, initial_weights(run_id), packed.program.module, {})
    return packed.data


def say_what_is_lost(store: Store, run_id: str, error: BaseException) -> None:
    """Warn of the newest checkpoint of a run that is about to be deleted because somebody interrupted it."""
    if isinstance(error, Exception):
        return
    with contextlib.suppress(StoreError):
        names = store.list(f"runs/{run_id}/checkpoints")
        if places := sorted(place for name in names if (place := place_of(name)) is not None):
            newest = name_of(places[-1])
            logger.warning("the fit was interrupted: %s, its newest checkpoint, is deleted with it", newest)


def _delete(store: Store, path: str) -> None:
    # What is left is in nobody's way; an error here would lose a trained model.
    try:
        store.delete(path)
    except StoreError as error:
        logger.warning("what a fit wrote could not be deleted: %s", error)
