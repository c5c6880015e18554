"""One attempt to run a program on a gang: channel, job, outcomes; the results, or the first failure. Driver side."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hvdspark.errors import ClusterError, HvdSparkError
from hvdspark.launch.blame import first_failure
from hvdspark.launch.channel import ChannelListener
from hvdspark.launch.gang_watch import GangWatch
from hvdspark.launch.leave_watch import LeaveWatch
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import DriverAddress, Launcher, LaunchSpec, Slots
from hvdspark.launch.start_watch import StartWatch

logger = logging.getLogger(__name__)

Event = dict[str, Any]


def run_generation(
    launcher: Launcher,
    spec: LaunchSpec,
    on_event: Callable[[Event], None],
    preemption: Preemption,
    slots: Callable[[], Slots | None],
) -> list[Any]:
    """What the program returned on each of `spec.world_size` ranks, by rank.

    Args:
        spec: without a channel, which is opened here.
        on_event: called in a thread with what ranks report; one call at a time.
        preemption: the ranks are told of it, where they can reach the driver.
        slots: what these ranks could have.

    Raises:
        PreemptedError: the ranks have made room, whoever asked them to.
        StartTimeoutError: not all ranks started in time.
        RankFailedError: a rank failed; see `first_failure`.
        HvdSparkError: what a rank raised, where that is one; or the job itself failed.
    """
    watch, gang = StartWatch(spec.world_size, on_event), GangWatch(spec.stall_timeout_s)

    def heard(event: Event) -> None:
        if not gang.on_event(event):
            watch.on_event(event)

    with _channel(launcher.driver_address(), spec, heard, watch.on_lost, preemption) as connected:
        job = launcher.job(connected)
        watch.begin(spec.start_timeout_s, job.has_begun, job.cancel, slots)
        gang.begin(job.cancel)
        try:
            with LeaveWatch(job.leaving, preemption.ask):
                outcomes = job.run()
        except Exception as error:
            if (stalled := gang.stalled()) is not None:
                raise stalled from error
            if isinstance(error, HvdSparkError):
                raise
            raise watch.timed_out() or watch.without_slots() or job.explain(error, watch.heard()) from error
        finally:
            watch.end()
            gang.end()
    if any(outcome.status != "ok" for outcome in outcomes.values()):
        raise first_failure(outcomes)
    return [_unpickle(outcomes[rank].result, rank) for rank in range(spec.world_size)]


def _unpickle(result: bytes, rank: int) -> Any:
    import cloudpickle

    try:
        return cloudpickle.loads(result)
    except Exception as error:
        hint = "return plain data; classes must be importable on the driver too"
        raise ClusterError(
            f"the result of rank {rank} cannot be unpickled on the driver: {error}", hint=hint
        ) from error


@contextlib.contextmanager
def _channel(
    address: DriverAddress | None,
    spec: LaunchSpec,
    on_event: Callable[[Event], None],
    on_lost: Callable[[Event], None],
    preemption: Preemption,
) -> Iterator[LaunchSpec]:
    """Open the driver's end of the channel, where ranks can reach the driver."""
    listener: ChannelListener | None = None
    if address is not None:
        try:
            listener = ChannelListener(address.bind, spec.secret, on_event, on_lost, address.port)
        except OSError as error:
            logger.warning("no progress will be shown, because the driver cannot listen at %s: %s", address, error)
    if address is None or listener is None:
        with preemption.told_to(_cannot_tell):
            yield spec
        return
    try:
        with preemption.told_to(listener.preempt):
            yield replace(spec, channel=(address.reachable, listener.port))
    finally:
        listener.close()


def _cannot_tell(reason: str) -> None:
    logger.warning("the ranks cannot be asked to make room (%s), because they cannot reach the driver", reason)
