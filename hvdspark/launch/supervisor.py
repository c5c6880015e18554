"""`hvdspark.run`: the driver's side of a gang of ranks.

A collected barrier stage is never retried by Spark ("Could not recover from a failed barrier ResultStage"), so
restarts are ours. Each attempt is a *generation* with its own secret, rendezvous and processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hvdspark.errors import ClusterError, ConfigurationError, HvdSparkError, RankFailedError, StartTimeoutError
from hvdspark.launch import session
from hvdspark.launch.channel import ChannelListener
from hvdspark.launch.devices import check_device

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from hvdspark.launch.barrier import LaunchSpec

logger = logging.getLogger(__name__)

Event = dict[str, Any]
# After this long without all ranks, say so; a gang usually starts within 5 seconds.
_PATIENCE_S = 15.0
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
        fn: pickled with cloudpickle; calls `hvdspark.context()` to learn its rank. Its results must be picklable and
            small: they travel through the driver. Put weights into the store.
        num_workers: number of ranks.
        spark: the session; the active one by default.
        device: "auto" uses the GPU that Spark assigned to the task, if any; "cpu"; "cuda" insists.
        store_uri: opened for the ranks as `hvdspark.context().store`.
        env: extra environment variables of the ranks.
        start_timeout_s: limit for all ranks to be running, in seconds (not enforced on Spark Connect).
        max_restarts: how often the gang is started again after a killed rank or a lost executor. An exception
            in `fn` is never retried.
        on_event: called on the driver, in a thread, with what ranks give to `context().report`. Not on Connect.

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
    spark = session.active_session(spark)
    session.check_session(spark, num_workers, device)
    program = cloudpickle.dumps((fn, tuple(args), dict(kwargs or {})))
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
            environment=dict(env or {}),
        )
        try:
            return _run_generation(spark, spec, start_timeout_s, on_event or (lambda event: None))
        except RankFailedError as error:
            if error.kind not in _WORTH_A_RESTART or generation == max_restarts:
                raise
            logger.warning("generation %d failed, starting again: %s", generation, error.cause)
            session.wait_for_slots(spark, num_workers, start_timeout_s)
    raise AssertionError("unreachable: the last generation returns or raises")


def _run_generation(
    spark: SparkSession, spec: LaunchSpec, start_timeout_s: float, on_event: Callable[[Event], None]
) -> list[Any]:
    watch = _StartWatch(spec.size, on_event)
    with _channel(spark, spec, watch) as connected, _cancellable(spark, f"hvdspark-{spec.secret[:8]}") as cancel:
        watch.begin(start_timeout_s if connected.channel else None, cancel)
        try:
            rows = _collect(spark, connected)
        except Exception as error:
            if _interrupted(error):
                raise KeyboardInterrupt from None  # py4j turns it into an error of its own
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


def _interrupted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_failure(outcomes: Mapping[int, Mapping[str, Any]]) -> Exception:
    """The error to raise for a gang of which a rank failed. Pure.

    A rank that failed because a peer vanished is blamed only when no rank failed by itself; among equals, the one
    that ended first.
    """
    failed = [(rank, outcome) for rank, outcome in outcomes.items() if outcome["status"] == "failed"]
    if not failed:
        rank, outcome = next((r, o) for r, o in outcomes.items() if o["status"] != "ok")
        return RankFailedError(rank, outcome["host"], outcome["cause"], kind="peer_lost")
    if all(outcome["kind"] == "peer_lost" for _, outcome in failed):
        return _only_victims(outcomes, *min(failed, key=lambda item: item[1]["ended_at_s"]))
    rank, outcome = min(failed, key=lambda item: (item[1]["kind"] == "peer_lost", item[1]["ended_at_s"]))
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
def _channel(spark: SparkSession, spec: LaunchSpec, watch: _StartWatch) -> Iterator[LaunchSpec]:
    """Open the driver's end of the channel, where executors can reach the driver."""
    addresses = session.driver_address(spark)
    if addresses is None:
        yield spec
        return
    bind, reachable = addresses
    listener = ChannelListener(bind, spec.secret, watch.on_event, watch.on_lost)
    try:
        yield replace(spec, channel=(reachable, listener.port))
    finally:
        listener.close()


@contextlib.contextmanager
def _cancellable(spark: SparkSession, tag: str) -> Iterator[Callable[[], Any]]:
    """Tag the jobs of this thread, and cancel them when the body is left by an exception (Ctrl-C included)."""
    add: Callable[[str], Any]
    remove: Callable[[str], Any]
    cancel: Callable[[str], Any]
    if session.is_connect(spark):
        add, remove, cancel = spark.addTag, spark.removeTag, spark.interruptTag
    else:
        context = spark.sparkContext
        add, remove, cancel = context.addJobTag, context.removeJobTag, context.cancelJobsWithTag
    add(tag)
    try:
        yield lambda: cancel(tag)
    except BaseException:
        with contextlib.suppress(Exception):  # the session itself may be gone
            cancel(tag)
        raise
    finally:
        with contextlib.suppress(Exception):
            remove(tag)


class _StartWatch:
    """Knows which ranks have started and which connections were lost; cancels a gang that does not start in time."""

    def __init__(self, size: int, on_event: Callable[[Event], None]) -> None:
        self._size, self._forward = size, on_event
        self._started: dict[int, str] = {}
        self._lost: list[Event] = []
        self._timed_out_after_s: float | None = None
        self._changed = threading.Condition()
        self._over = False
        self._thread: threading.Thread | None = None

    def on_event(self, event: Event) -> None:
        if event.get("event") == "started":
            with self._changed:
                self._started[event["rank"]] = event["host"]
                self._changed.notify_all()
        elif event.get("event") != "bye":
            self._forward(event)

    def on_lost(self, hello: Event) -> None:
        with self._changed:
            self._lost.append(hello)

    def begin(self, timeout_s: float | None, cancel: Callable[[], Any]) -> None:
        if timeout_s is None:
            return

        def watch() -> None:
            with self._changed:
                ready = self._changed.wait_for(self._settled, min(timeout_s, _PATIENCE_S))
                if not ready and timeout_s > _PATIENCE_S:
                    logger.warning(
                        "%d of %d ranks have started after %g s; other jobs may hold the slots",
                        *(len(self._started), self._size, _PATIENCE_S),
                    )
                    ready = self._changed.wait_for(self._settled, timeout_s - _PATIENCE_S)
                if not ready:
                    self._timed_out_after_s = timeout_s
            if not ready:
                cancel()

        self._thread = threading.Thread(target=watch, name="hvdspark-start-watch", daemon=True)
        self._thread.start()

    def _settled(self) -> bool:
        return self._over or len(self._started) == self._size

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def explain(self, error: Exception) -> Exception:
        """What a failed Spark job means for the gang."""
        with self._changed:
            if self._timed_out_after_s is not None:
                return StartTimeoutError(
                    f"only {len(self._started)} of {self._size} ranks started within {self._timed_out_after_s:g} s",
                    where="start_timeout_s",
                    hint="other jobs may hold the slots, or executors cannot reach the driver; "
                    "`hvdspark doctor` shows the free slots",
                )
            text = str(error)
            if "PythonException" in text:
                trace = text.partition("PythonException: ")[2].partition("\n\n")[0]
                return ClusterError(
                    f"the barrier task itself failed on an executor:\n{trace}\n",
                    hint="the executors' Python must have the same packages as the driver's: set PYSPARK_PYTHON "
                    "(or spark.pyspark.python) before the session starts",
                )
            if self._lost or "ExecutorLostFailure" in text or "failed barrier ResultStage" in text:
                lost = self._lost[0] if self._lost else {"rank": None, "host": "unknown"}
                reason = next((line for line in text.splitlines() if "reason:" in line), text.splitlines()[0])
                return RankFailedError(
                    lost["rank"],
                    lost["host"],
                    f"its executor was lost: {reason.strip()[:500]}",
                    kind="executor_lost",
                    hint="look for the executor's exit reason (often memory: spark.executor.memoryOverhead)",
                )
            return ClusterError("the barrier job failed", value=text[:4000])
