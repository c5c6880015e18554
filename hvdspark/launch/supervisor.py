"""`hvdspark.run`: whether a program may start, and when it is started again.

Nothing below restarts anything by itself: each attempt is a *generation* (generation.py) with its own size, secret,
rendezvous and processes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from hvdspark.checks import number
from hvdspark.errors import ConfigurationError
from hvdspark.launch.devices import check_device
from hvdspark.launch.environment import check_environment
from hvdspark.launch.generation import Event
from hvdspark.launch.generations import Generations
from hvdspark.launch.line import Waiting
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import STALL_TIMEOUT_S, Launcher, LaunchSpec
from hvdspark.launch.world_sizes import world_sizes
from hvdspark.session import active_session
from hvdspark.store import Store

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


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
    min_workers: int | None = None,
    max_workers: int | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
    preemption: Preemption | None = None,
    first_generation: int = 0,
) -> list[Any]:
    """Run `fn(*args, **kwargs)` on `num_workers` ranks, one for each Spark task, with Horovod initialised.

    Each rank is a process of its own on an executor, and ends with its task. May be called from any thread.

    Args:
        fn: pickled with cloudpickle; calls `hvdspark.context()` to learn its rank. `SparkFiles` and broadcast variables
            work inside it as in a function that Spark calls. Its results must be picklable and small: they travel
            through the driver. Put weights into the store.
        num_workers, spark: number of ranks, and the session; the active one by default.
        device: "auto" uses the GPU that Spark assigned to the task, if any; "cpu"; "cuda" insists.
        store_uri: opened for the ranks as `hvdspark.context().store`; a path is where this process would find it.
        env: extra environment variables of the ranks. They win over `spark.executorEnv`; a PYTHONPATH is put in front
            of the executors'. What says who a rank is (HOROVOD_RANK, ...) is refused.
        start_timeout_s: seconds for the tasks to get their slots, and then for all ranks to import what they need.
        max_restarts: how often in a row the gang is started again after a killed, hung or lost rank, with 1, 2, 4, ...
            up to 30 s in between. What ranks report as {"event": "checkpoint", ...} renews the number. An exception in
            `fn` is never retried, nor is a rank that ends twice in the same step (`context().reached`).
        on_event: called on the driver, in a thread, with what ranks give to `context().report` and what is known here:
            {"event": "generation", ...} when ranks are launched, and {"event": "rank_lost", ...} where one did not fail
            by itself (see `hvdspark.fan_out.event_of`). One call at a time; what it raises is dropped.
        min_workers, max_workers: a generation of ranks has as many as there are slots for, between these; each is
            `num_workers` where it is not given. Where executors are lost for more than seconds, it has fewer than the
            one before; when there is room for more, ranks make room (`context().preempted()`), and more are started.
        stall_timeout_s: after so many seconds without a sign of life of a rank or task, or in which all ranks wait for
            each other, the gang is ended, as by a killed rank. No limit for computing, which gives signs of life.
        preemption: by which this thread or another one asks the ranks to make room (`context().preempted()`).
        first_generation: number of the first launch, where an earlier driver has launched the same program before.

    Returns:
        What `fn` returned, by rank.

    Raises:
        ConfigurationError, StoreError, ClusterError, NotEnoughSlotsError: before anything is started.
        StartTimeoutError: not all ranks started in time.
        PreemptedError: the ranks have made room, as `preemption` asks. Where the platform has asked them to, they are
            started again, which counts as no restart.
        RankFailedError: names the rank that failed first, its host and the cause. Where that cause is an error of
            hvdspark itself (a SchemaError, say), that error is raised, from the RankFailedError. Where there was more
            than one generation, the message tells what ended each of them.
    """
    from hvdspark.launch.barrier import BarrierLauncher

    preemption = preemption or Preemption()
    return supervise(
        BarrierLauncher(active_session(spark), preemption.go_on),
        fn,
        args,
        kwargs,
        num_workers,
        device=device,
        store_uri=store_uri,
        env=env,
        start_timeout_s=start_timeout_s,
        max_restarts=max_restarts,
        on_event=on_event,
        min_workers=min_workers,
        max_workers=max_workers,
        stall_timeout_s=stall_timeout_s,
        preemption=preemption,
        first_generation=first_generation,
    )


def supervise(
    launcher: Launcher,
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_workers: int = 2,
    *,
    device: str = "auto",
    store_uri: str | None = None,
    env: Mapping[str, str] | None = None,
    start_timeout_s: float = 600.0,
    max_restarts: int = 0,
    on_event: Callable[[Event], None] | None = None,
    min_workers: int | None = None,
    max_workers: int | None = None,
    stall_timeout_s: float = STALL_TIMEOUT_S,
    preemption: Preemption | None = None,
    first_generation: int = 0,
) -> list[Any]:
    """`run` on the ranks of any launcher; arguments, results and errors are the same."""
    check_device(device)
    if max_restarts < 0:
        raise ConfigurationError(
            "negative number of restarts", value=max_restarts, where="max_restarts", hint="0 or more"
        )
    number("the time to start", start_timeout_s, "start_timeout_s", above=0, below=threading.TIMEOUT_MAX)
    number("the time to stall", stall_timeout_s, "stall_timeout_s", above=0, below=threading.TIMEOUT_MAX)
    sizes = world_sizes(num_workers, min_workers, max_workers)
    # Not the ranks': they may have other working directories.
    store_uri = Store(store_uri).uri if store_uri is not None else None
    environment = check_environment(env or {})
    report = partial(_tell, on_event or (lambda event: None))
    launcher.check(sizes.least, device, start_timeout_s)
    first = LaunchSpec(
        program=launcher.pickled((fn, tuple(args), dict(kwargs or {}))),
        world_size=sizes.most,
        secret="",  # each generation has its own
        generation=first_generation,
        device=device,
        store_uri=store_uri,
        channel=None,
        environment=environment,
        start_timeout_s=start_timeout_s,
        stall_timeout_s=stall_timeout_s,
        elastic=sizes.least < sizes.most,
    )
    with launcher.turn(sizes, partial(_waits, report)) as seat:
        return Generations(launcher, first, sizes, max_restarts, report, preemption or Preemption(), seat).run()


def _waits(report: Callable[[Event], None], place: Waiting) -> None:
    """Say that ranks wait for slots, loudly the first time."""
    level = logging.INFO if place.again else logging.WARNING
    text = "%d ranks wait for as many task slots: %d of %d are free, ahead of them %d fits or programs; %.0f s so far"
    logger.log(level, text, place.slots, place.free, place.total, place.ahead, place.waited_s)
    report({"event": "waiting", **asdict(place)})


def _tell(on_event: Callable[[Event], None], event: Event) -> None:
    """Whoever listens must never end a run."""
    try:
        on_event(event)
    except Exception:
        logger.warning("on_event failed for %s", event["event"], exc_info=True)


def check_spark(spark: SparkSession, num_workers: int, device: str, start_timeout_s: float) -> None:
    """Refuse a session in which `num_workers` ranks cannot run. Raises what `BarrierLauncher.check` raises."""
    from hvdspark.launch.barrier import BarrierLauncher

    BarrierLauncher(spark).check(num_workers, device, start_timeout_s)
