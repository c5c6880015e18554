"""A task: one for each rank, wherever a launcher runs it. Meets the others, starts the rank, says how it ended.

A task never raises for what happens inside its rank. It returns an outcome, so that all outcomes reach the driver,
which then names the rank that failed first; with Spark, raising would abort the stage with whichever error came first.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from hvdspark.errors import RankFailedError
from hvdspark.launch.addresses import LOOPBACK, interface_towards
from hvdspark.launch.channel import ChannelSender
from hvdspark.launch.child import RankProcess
from hvdspark.launch.devices import cuda_environment
from hvdspark.launch.environment import rank_environment, search_path
from hvdspark.launch.frames import Assignment
from hvdspark.launch.host_store import HostStore
from hvdspark.launch.machine import machine_memory
from hvdspark.launch.outcomes import Outcome, StopCause
from hvdspark.launch.placement import Peer, assign, host_key, one_host
from hvdspark.launch.protocol import LaunchSpec
from hvdspark.launch.rank_watch import RankWatch, pulse_every_s, resolved
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer, retried
from hvdspark.launch.wiring import INTERFACE, rank_variables
from hvdspark.specs import World

# After the decision to stop, how long partition 0 keeps the server for reports of the other ranks.
_LAST_REPORTS_S = 10.0
# A task asks every 10 s whether its rank must stop, and notices a cut connection within 15. Silent for longer than
# that, twice, it is over, and its report was lost.
_SILENT_S = 40.0
# A server that cannot be reached for so long took partition 0 with it. The launcher ends the other tasks before.
_SERVER_GONE_S = 60.0
_RETRY_PAUSE_S = 0.5
_SERVER_GONE = StopCause("stopped", "stopped because the task of rank 0 could not be reached any more")
_DRIVER_GONE = StopCause("stopped", "stopped because the driver could not be reached any more")


@dataclass(frozen=True)
class Place:
    """Where a task runs, and how it meets the others.

    Attributes:
        partition: which of the tasks it is. Partition 0 becomes rank 0.
        addresses: of the hosts of all tasks, by partition; each can be reached from all of them.
        threads: CPU threads for its rank.
        gpus: addresses of the GPUs that were assigned to the task.
        gpu_scheduled: a GPU was assigned, or nobody assigns any here.
        meet: collective of the tasks: takes a text of each and returns those of all, by partition. It has a time limit.
            Raises StartTimeoutError.
        files, broadcasts: as in `Assignment`.
        scratch: directory of the executor, which goes with it; None where there is none.
    """

    partition: int
    addresses: Sequence[str]
    threads: int
    gpus: Sequence[str]
    gpu_scheduled: bool
    meet: Callable[[str], Sequence[str]]
    files: str | None = None
    broadcasts: Mapping[str, str] = field(default_factory=dict)
    scratch: str | None = None


def run_task(spec: LaunchSpec, place: Place) -> tuple[World, Outcome]:
    """Collective of the tasks. See one rank from its start to its end.

    Raises:
        StartTimeoutError: not all tasks have met in time.
        RankFailedError: the gang is stalled because of a task that does not answer, and so keeps the job from ending.
    """
    cuda = cuda_environment(spec.device, place.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    environment = rank_environment(os.environ, threads=place.threads, extra={**cuda, **spec.environment})
    with contextlib.ExitStack() as stack:
        channel_holder: list[ChannelSender] = []
        process = RankProcess(
            environment, lambda event: channel_holder[0].send(event), search_path=search_path(spec.environment)
        )
        stack.callback(process.end)
        channel = ChannelSender(
            spec.channel, spec.secret, on_closed=lambda: process.stop(_DRIVER_GONE), on_preempt=process.preempt
        )
        stack.callback(channel.close)
        channel_holder.append(channel)
        process.send_program(spec.program)
        peers, server = _meet(spec, place, stack)
        worlds = assign([peer.peer for peer in peers])
        world, watch = worlds[place.partition], _watch(spec, place, worlds, channel)
        if server is not None:
            server.outcomes.met(watch.hosts)
        # The task's own record of itself, for the driver to name an executor that is lost later.
        located = {"rank": world.rank, "host": world.hostname, "partition": place.partition}
        channel.send({"event": "started", **located})
        host = _rendezvous_host([peer.peer for peer in peers])
        gang = RendezvousClient(host, peers[0].port, spec.secret)
        store = HostStore(gang, world)
        stack.callback(store.close)
        limit = spec.memory.on(machine_memory(), world.local_size)
        interface = environment.get(INTERFACE) or interface_towards(host)
        process.send_assignment(
            Assignment(
                world=world,
                environment={
                    INTERFACE: interface,
                    **rank_variables(world),
                    **store.horovod_environment(),
                    **(limit.environment() if limit is not None else {}),
                },
                device=spec.device,
                gpu_scheduled=place.gpu_scheduled,
                generation=spec.generation,
                store_uri=spec.store_uri,
                files=place.files,
                broadcasts=dict(place.broadcasts),
                pulse_every_s=pulse_every_s(spec.stall_timeout_s),
                scratch=place.scratch if spec.elastic else None,
            )
        )
        outcome = see_to_its_end(process, gang, world.rank, watch)
        if server is not None:
            keep_until_all_reported(server, watch.tell_driver)
        channel.send({"event": "over", "rank": world.rank})
        frozen = None if server is not None and server.outcomes.has(outcome.about) else outcome.about
    if frozen is not None and (server is not None or frozen == 0):
        raise RankFailedError(frozen, watch.hosts[frozen], outcome.cause, kind="stalled")
    return world, replace(outcome, host=world.hostname, ended_at_s=time.time())


@dataclass(frozen=True)
class _Introduction:
    peer: Peer
    port: int  # of the rendezvous server; 0 from every task but partition 0's


def _meet(
    spec: LaunchSpec, place: Place, stack: contextlib.ExitStack
) -> tuple[list[_Introduction], RendezvousServer | None]:
    """Collective of the tasks: who is where. `stack` closes the server."""
    server = None
    if place.partition == 0:
        server = RendezvousServer(
            _bindable(place.addresses), spec.world_size, spec.secret, spec.start_timeout_s, spec.stall_timeout_s
        )
        stack.callback(server.close)
    peer = Peer(place.partition, host_key(), socket.gethostname(), place.addresses[place.partition])
    mine = json.dumps({"peer": asdict(peer), "port": server.port if server else 0})
    answers = [json.loads(text) for text in place.meet(mine)]
    return [_Introduction(Peer(**answer["peer"]), answer["port"]) for answer in answers], server


def _bindable(addresses: Sequence[str]) -> str:
    """Loopback when every task has one address, so that nothing is open to the network; else all interfaces.

    All interfaces, because the address under which others reach this executor may not exist on it (NAT, services
    in front of pods). Requests without the run's secret are refused.
    """
    return LOOPBACK if len(set(addresses)) == 1 else ""


def _rendezvous_host(peers: Sequence[Peer]) -> str:
    """Where tasks reach the server of partition 0; loopback exactly where `_bindable` or sharing a host allows it."""
    shared = one_host(peers) or len({peer.address for peer in peers}) == 1
    return LOOPBACK if shared else peers[0].address


def _watch(spec: LaunchSpec, place: Place, worlds: Mapping[int, World], channel: ChannelSender) -> RankWatch:
    names = [worlds[partition].hostname for partition in range(len(worlds))]
    hosts = [world.hostname for world in sorted(worlds.values(), key=lambda world: world.rank)]
    return RankWatch(
        worlds[place.partition].rank, hosts, resolved(place.addresses, names), spec.stall_timeout_s, channel.send
    )


def see_to_its_end(process: RankProcess, gang: RendezvousClient, rank: int, watch: RankWatch | None = None) -> Outcome:
    """Let the rank begin with the others, wait for it to end, stop it when the gang must stop, and report its outcome
    to the server."""
    ended, watch = threading.Event(), watch or RankWatch(rank, ["this host"] * (rank + 1))
    threads = [
        threading.Thread(target=_start_with_the_gang, args=(process, gang, rank, ended), daemon=True),
        threading.Thread(target=_stop_with_the_gang, args=(process, gang, watch, ended), daemon=True),
        threading.Thread(target=watch.end_when_frozen, args=(process, ended), daemon=True),
        threading.Thread(target=watch.keep_in_touch, args=(process, gang, ended), daemon=True),
    ]
    for thread in threads:
        thread.start()
    outcome = process.wait()
    ended.set()
    if outcome.about == 0 and rank != 0:
        return outcome  # there is no server any more
    with contextlib.suppress(OSError):  # without the server, what the task returns still tells the driver
        return replace(outcome, order=retried(lambda: gang.record(rank, outcome)))
    return outcome


def _start_with_the_gang(process: RankProcess, gang: RendezvousClient, rank: int, ended: threading.Event) -> None:
    """No rank joins the others before all of them can: Gloo's time limit for that is none for slow imports."""
    if not process.wait_ready():
        return
    said = False
    while not ended.is_set():
        try:
            if not said:
                gang.ready(rank)
                said = True
            elif gang.all_ready():
                process.go()
                return
        except OSError:
            ended.wait(_RETRY_PAUSE_S)


def _stop_with_the_gang(process: RankProcess, gang: RendezvousClient, watch: RankWatch, ended: threading.Event) -> None:
    heard_s = time.monotonic()
    while not ended.is_set():
        try:
            cause = gang.stop_cause(watch.rank)
            heard_s = time.monotonic()
        except OSError:
            cause = _SERVER_GONE if time.monotonic() - heard_s > _SERVER_GONE_S else None
            ended.wait(_RETRY_PAUSE_S)
        if cause is not None and not ended.is_set():
            watch.stop(process, cause)
            return


def keep_until_all_reported(server: RendezvousServer, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Hold the server while ranks run. Unlimited while all is well; the launcher ends this task if another is lost.

    Args:
        meanwhile: called every second.
    """
    while not server.outcomes.wait_all(wait_s=1.0):
        meanwhile()
        if server.outcomes.must_stop(wait_s=0):
            server.outcomes.wait_all(wait_s=_LAST_REPORTS_S)
            return
        if server.outcomes.rest_is_silent(_SILENT_S):
            return  # what those tasks return tells the driver how their ranks ended
