"""`hvdspark.run`: the driver's side of a gang of ranks.

A collected barrier stage is never retried by Spark ("Could not recover from a failed barrier ResultStage"), so
restarts are ours. Each attempt is a *generation* with its own secret, rendezvous and processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hvdspark.errors import ClusterError, ConfigurationError, HvdSparkError, RankFailedError
from hvdspark.launch import session
from hvdspark.launch.channel import ChannelListener
from hvdspark.launch.devices import check_device
from hvdspark.launch.environment import check_environment
from hvdspark.launch.interrupt import cancel, interruptible, new_tag
from hvdspark.launch.memory import check_address_space
from hvdspark.launch.start_watch import SLOW, StartWatch, start_timeout
from hvdspark.launch.workers import check_workers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from hvdspark.launch.barrier import LaunchSpec

logger = logging.getLogger(__name__)

Event = dict[str, Any]
# A program that fails by itself would fail again; these did not fail by themselves.
_WORTH_A_RESTART = ("signal", "executor_lost", "peer_lost")


def run(
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_workers: int = 2,
    spark: SparkSession | None = None,
    *,
    device: str = "auto",
    store_uri: str | None = None,
    env: Mapping[str, str] | None = None,
    start_timeout_s: float = 600.0,
    max_restarts: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> list[Any]:
    """Run `fn(*args, **kwargs)` on `num_workers` ranks, one for each Spark task, with Horovod initialised.

    Each rank is a process of its own on an executor, and ends with its task. May be called from any thread.

    Args:
        fn: pickled with cloudpickle; calls `hvdspark.context()` to learn its rank. `SparkFiles` and broadcast variables
            work inside it as in a function that Spark calls. Its results must be picklable and small: they travel
            through the driver. Put weights into the store.
        num_workers: number of ranks.
        spark: the session; the active one by default.
        device: "auto" uses the GPU that Spark assigned to the task, if any; "cpu"; "cuda" insists.
        store_uri: opened for the ranks as `hvdspark.context().store`.
        env: extra environment variables of the ranks. They win over `spark.executorEnv`; a PYTHONPATH is put in front
            of the executors'. What says who a rank is (HOROVOD_RANK, ...) is refused.
        start_timeout_s: limit in seconds for the tasks to get their slots (not enforced on Spark Connect), and then
            for all ranks to have imported what they need. No other limit applies to the start.
        max_restarts: how often the gang is started again after a killed rank or a lost executor. An exception
            in `fn` is never retried.
        on_event: called on the driver, in a thread, with what ranks give to `context().report`; one call at a time.
            Not on Connect.

    Returns:
        What `fn` returned, by rank.

    Raises:
        ConfigurationError, ClusterError, NotEnoughSlotsError: before anything is started.
        StartTimeoutError: not all ranks started in time.
        RankFailedError: names the rank that failed first, its host and the cause. Where that cause is an error of
            hvdspark itself (a SchemaError, say), that error is raised, from the RankFailedError.
    """
    import cloudpickle

    from hvdspark.launch.barrier import LaunchSpec

    check_device(device)
    if max_restarts < 0:
        raise ConfigurationError(
            "negative number of restarts", value=max_restarts, where="max_restarts", hint="0 or more"
        )
    environment = check_environment(env or {})
    spark = session.active_session(spark)
    check_spark(spark, num_workers, device, start_timeout_s)
    program = cloudpickle.dumps((fn, tuple(args), dict(kwargs or {})))
    broadcasts = session.pickled_broadcasts(spark)
    for generation in range(max_restarts + 1):
        spec = LaunchSpec(
            program=program,
            size=num_workers,
            secret=secrets.token_hex(16),
            generation=generation,
            device=device,
            store_uri=store_uri,
            channel=None,
            local_mode=session.is_local(spark),
            environment=environment,
            start_timeout_s=start_timeout_s,
            broadcasts=broadcasts,
        )
        try:
            return _run_generation(spark, spec, start_timeout_s, on_event or (lambda event: None))
        except RankFailedError as error:
            if error.kind not in _WORTH_A_RESTART or generation == max_restarts:
                raise
            logger.warning("generation %d failed, starting again: %s", generation, error.cause)
            session.wait_for_slots(spark, num_workers, start_timeout_s)
    raise AssertionError("unreachable: the last generation returns or raises")


def check_spark(spark: SparkSession, num_workers: int, device: str, start_timeout_s: float) -> None:
    """Refuse a session in which `num_workers` ranks cannot run.

    Raises:
        What `session.check_session`, `memory.check_address_space` and, in clusters, `workers.check_workers` raise.
    """
    session.check_session(spark, num_workers, device)
    check_address_space(spark)
    if not session.is_local(spark):
        check_workers(spark, num_workers, start_timeout_s)


def _run_generation(
    spark: SparkSession, spec: LaunchSpec, start_timeout_s: float, on_event: Callable[[Event], None]
) -> list[Any]:
    watch, tag = StartWatch(spec.size, on_event), new_tag()
    with _channel(spark, spec, watch) as connected:
        if not session.is_connect(spark):
            watch.begin(start_timeout_s, lambda: session.tasks_run(spark, tag), lambda: cancel(spark, tag))
        try:
            rows = interruptible(spark, lambda: _collect(spark, connected), tag)
        except Exception as error:
            raise watch.explain(error) from error
        finally:
            watch.end()
    results: dict[int, bytes] = {}
    outcomes: dict[int, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["rank"], row["sequence"])):
        results[row["rank"]] = results.get(row["rank"], b"") + bytes(row["chunk"])
        if row["sequence"] == 0:
            outcomes[row["rank"]] = json.loads(row["outcome"])
    if any(outcome["status"] != "ok" for outcome in outcomes.values()):
        raise first_failure(outcomes)
    return [_unpickle(results[rank], rank) for rank in range(spec.size)]


def _unpickle(result: bytes, rank: int) -> Any:
    import cloudpickle

    try:
        return cloudpickle.loads(result)
    except Exception as error:
        hint = "return plain data; classes must be importable on the driver too"
        raise ClusterError(
            f"the result of rank {rank} cannot be unpickled on the driver: {error}", hint=hint
        ) from error


def first_failure(outcomes: Mapping[int, Mapping[str, Any]]) -> Exception:
    """The error to raise for a gang of which a rank failed. Pure.

    A rank that failed because a peer vanished is blamed only when no rank failed by itself; among equals, the one
    that reported first.
    """
    failed = [(rank, outcome) for rank, outcome in outcomes.items() if outcome["status"] == "failed"]
    if not failed:
        rank, outcome = next((r, o) for r, o in outcomes.items() if o["status"] != "ok")
        if outcome["kind"] == "start_timeout":
            return start_timeout(outcome["cause"], SLOW)
        return RankFailedError(rank, outcome["host"], outcome["cause"], kind="peer_lost")
    if all(outcome["kind"] == "peer_lost" for _, outcome in failed):
        return _only_victims(outcomes, *min(failed, key=lambda item: _when(item[1])))
    rank, outcome = min(failed, key=lambda item: (item[1]["kind"] == "peer_lost", _when(item[1])))
    error = RankFailedError(
        rank,
        outcome["host"],
        outcome["cause"],
        kind=outcome["kind"],
        traceback_text=outcome.get("traceback", ""),
        tail=outcome.get("tail", ""),
    )
    if "error" in outcome:
        import cloudpickle

        own: HvdSparkError = cloudpickle.loads(bytes.fromhex(outcome["error"]))
        own.__cause__ = error
        return own
    return error


def _when(outcome: Mapping[str, Any]) -> tuple[float, float]:
    """Sorts outcomes: as the gang's server received them. Clocks of hosts differ, and only serve where it did not."""
    return outcome.get("order", math.inf), outcome["ended_at_s"]


def _only_victims(outcomes: Mapping[int, Mapping[str, Any]], rank: int, outcome: Mapping[str, Any]) -> RankFailedError:
    """No rank failed by itself: say what the others did, because one of them is the reason."""
    returned = sorted(other for other, item in outcomes.items() if item["status"] == "ok")
    silent = sorted(other for other, item in outcomes.items() if item["status"] == "aborted")
    suspects = []
    if returned:
        suspects.append(f"ranks {returned} had already returned")
    if silent:
        suspects.append(f"ranks {silent} did not answer any more (frozen, swapping, or cut off from the network)")
    return RankFailedError(
        rank,
        outcome["host"],
        f"it lost the others: {' and '.join(suspects) or 'the connection between all ranks broke'}. "
        f"Horovod said: {outcome['cause']}",
        kind="peer_lost",
        traceback_text=outcome.get("traceback", ""),
        tail=outcome.get("tail", ""),
        hint="every rank must call the same collectives, as often, in the same order",
    )


def _collect(spark: SparkSession, spec: LaunchSpec) -> list[Any]:
    from hvdspark.launch.barrier import SCHEMA, run_task

    def task(_: Iterable[Any]) -> Iterable[Any]:
        return run_task(spec)

    # A bare collect: a shuffle behind the barrier would make Spark retry it, without anyone agreeing on a state.
    return spark.range(0, spec.size, 1, spec.size).mapInArrow(task, SCHEMA, barrier=True).collect()


@contextlib.contextmanager
def _channel(spark: SparkSession, spec: LaunchSpec, watch: StartWatch) -> Iterator[LaunchSpec]:
    """Open the driver's end of the channel, where executors can reach the driver."""
    address = session.driver_address(spark)
    if address is None:
        yield spec
        return
    try:
        listener = ChannelListener(address.bind, spec.secret, watch.on_event, watch.on_lost, address.port)
    except OSError as error:
        logger.warning("no progress will be shown, because the driver cannot listen at %s: %s", address, error)
        yield spec
        return
    try:
        yield replace(spec, channel=(address.reachable, listener.port))
    finally:
        listener.close()
