"""The driver's side of a training run: what lies in the store meanwhile, the launch, what is deleted afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvdspark import launch
from hvdspark.artifact.weights import write_weights
from hvdspark.errors import PreemptedError
from hvdspark.specs import TrainSpec, from_json, to_json
from hvdspark.store import Store
from hvdspark.train.keeping import Keeping
from hvdspark.train.on_rank import initial_weights, train_on_rank
from hvdspark.train.pickling import Packed
from hvdspark.train.program import Program, TrainResult

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


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
    keeping: Keeping,
) -> TrainResult:
    """Launch ranks that train a program; its trained model is in the store when this returns.

    When training fails, what the run wrote into the store is deleted, unless it has a name; the error is the one of
    `hvdspark.run`.

    Args:
        report: takes what ranks and the launcher report, in a thread.
        preemption: asks the ranks to make room.
        keeping: what stays of the run.

    Raises:
        PreemptedError: the ranks have made room, as was asked for; says how to go on.
    """
    store = Store(spec.store_uri)

    def take_in(event: dict[str, Any]) -> None:
        report(event)
        if event["event"] == "generation":
            keeping.launched(event["generation"])

    try:
        with keeping.holding():
            results = launch.run(
                train_on_rank,
                (to_json(spec), send(store, spec.run_id, packed, again=keeping.before is not None)),
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
                on_event=take_in,
                preemption=preemption,
                first_generation=keeping.generation,
            )
            result = from_json(TrainResult, results[0])
            keeping.finished(result)
    except PreemptedError as error:
        if preemption.for_good:
            keeping.failed(error)
            raise
        how = keeping.made_room()
        raise PreemptedError(error.what, value=error.value, hint=how, run_id=spec.run_id) from error
    except BaseException as error:
        keeping.failed(error)
        raise
    return result


def send(store: Store, run_id: str, packed: Packed[Program], *, again: bool = False) -> bytes:
    """The program for `train_on_rank` without its module's weights, which are written into the store.

    Args:
        again: the run was begun before; if its weights of then are there, it goes on with those.
    """
    initial = initial_weights(run_id)
    if not again or store.committed(initial) is None:
        write_weights(store, initial, packed.program.module, {})
    return packed.data
