"""The barrier task: one per rank, on the executors. Meets the others, starts the rank, reports how it ended.

A task never raises for what happens inside its rank. It returns rows, so that all outcomes reach the driver, which
then names the rank that failed first; raising would make Spark abort the stage with whichever error came first.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pyspark import BarrierTaskContext, SparkFiles

from hvdspark.errors import StartTimeoutError
from hvdspark.launch.addresses import LOOPBACK, host_of, interface_towards
from hvdspark.launch.channel import ChannelSender
from hvdspark.launch.child import RankProcess
from hvdspark.launch.devices import cuda_environment
from hvdspark.launch.environment import INTERFACE, rank_environment, search_path
from hvdspark.launch.host_store import HostStore
from hvdspark.launch.placement import Peer, assign, host_key, one_host
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer, retried
from hvdspark.specs import World

SCHEMA = "rank int, outcome string, sequence int, chunk binary"
_ARROW_SCHEMA = pa.schema(
    [("rank", pa.int32()), ("outcome", pa.string()), ("sequence", pa.int32()), ("chunk", pa.binary())]
)
# Spark Connect caps a message at 4 MiB (TorchDistributor sends 4 KiB rows for the same reason).
_CHUNK_BYTES = 1 << 20
# After the decision to stop, how long partition 0 keeps the server for reports of the other ranks.
_LAST_REPORTS_S = 10.0
# A task asks every 10 s whether its rank must stop, and notices a cut connection within 15. Silent for longer than
# that, twice, it is over, and its report was lost.
_SILENT_S = 40.0
# A server that cannot be reached for so long took partition 0 with it. Spark ends the other tasks before.
_SERVER_GONE_S = 60.0
_RETRY_PAUSE_S = 0.5
_SERVER_GONE = {"kind": "stopped", "cause": "stopped because the task of rank 0 could not be reached any more"}
_DRIVER_GONE = {"kind": "stopped", "cause": "stopped because the driver could not be reached any more"}


@dataclass(frozen=True)
class LaunchSpec:
    """What every task of one generation of the gang is given.

    Attributes:
        program: cloudpickled (fn, args, kwargs).
        secret: of this generation; for the rendezvous and the channel.
        channel: (host, port) of the driver's listener, or None.
        local_mode: Spark runs in the driver's process and does not schedule GPUs.
        environment: extra variables for the ranks.
        broadcasts: broadcast variables in `program`, by id. As a part of this object they reach the tasks.
        start_timeout_s: limit for all ranks to be ready for `hvd.init`, from the start of the tasks on.
    """

    program: bytes
    size: int
    secret: str
    generation: int
    device: str
    store_uri: str | None
    channel: tuple[str, int] | None
    local_mode: bool
    environment: dict[str, str]
    start_timeout_s: float
    broadcasts: dict[int, Any]


def run_task(spec: LaunchSpec) -> Iterator[pa.RecordBatch]:
    """Body of one barrier task; yields the rows of `SCHEMA`."""
    context = BarrierTaskContext.get()
    gpus = context.resources().get("gpu")
    assigned = list(gpus.addresses) if gpus else []
    cuda = cuda_environment(spec.device, assigned, os.environ.get("CUDA_VISIBLE_DEVICES"))
    environment = rank_environment(os.environ, threads=context.cpus(), extra={**cuda, **spec.environment})
    with contextlib.ExitStack() as stack:
        channel_holder: list[ChannelSender] = []
        process = RankProcess(
            environment, lambda event: channel_holder[0].send(event), search_path=search_path(spec.environment)
        )
        stack.callback(process.end)
        channel = ChannelSender(spec.channel, spec.secret, on_closed=lambda: process.stop(_DRIVER_GONE))
        stack.callback(channel.close)
        channel_holder.append(channel)
        process.send_program(spec.program)
        peers, server = _meet(context, spec, stack)
        world = assign([peer.peer for peer in peers])[context.partitionId()]
        # The worker's own record of the task, for the driver to name an executor that is lost later.
        channel.send({"event": "started", "rank": world.rank, "host": world.hostname})
        host = _rendezvous_host([peer.peer for peer in peers])
        gang = RendezvousClient(host, peers[0].port, spec.secret)
        store = HostStore(gang, world, spec.secret)
        stack.callback(store.close)
        process.send_assignment(
            {
                "world": asdict(world),
                "environment": {
                    INTERFACE: environment.get(INTERFACE) or interface_towards(host),
                    **horovod_environment(world),
                    **store.horovod_environment(),
                },
                "device": spec.device,
                "gpu_scheduled": bool(assigned) or spec.local_mode,
                "generation": spec.generation,
                "store_uri": spec.store_uri,
                "files": SparkFiles.getRootDirectory(),
                "has_files": bool(os.listdir(SparkFiles.getRootDirectory())),
                "broadcasts": {key: variable._path for key, variable in spec.broadcasts.items()},
            },
            prefix=f"[rank {world.rank} {world.hostname}] ",
        )
        outcome = _watch(process, gang, world.rank)
        if server is not None:
            _keep_until_all_reported(server)
    yield from _rows(world, outcome)


def horovod_environment(world: World) -> dict[str, str]:
    """Horovod's variables for one rank (names: horovod/runner/gloo_run.py `create_slot_env_vars`)."""
    return {
        # Names the scope in which the ranks of a host meet: two containers may have one host name.
        "HOROVOD_HOSTNAME": f"{world.hostname}-{world.rank - world.local_rank}",
        "HOROVOD_RANK": str(world.rank),
        "HOROVOD_SIZE": str(world.size),
        "HOROVOD_LOCAL_RANK": str(world.local_rank),
        "HOROVOD_LOCAL_SIZE": str(world.local_size),
        "HOROVOD_CROSS_RANK": str(world.cross_rank),
        "HOROVOD_CROSS_SIZE": str(world.cross_size),
    }


@dataclass(frozen=True)
class _Introduction:
    peer: Peer
    port: int  # of the rendezvous server; 0 from every task but partition 0's


def _meet(
    context: BarrierTaskContext, spec: LaunchSpec, stack: contextlib.ExitStack
) -> tuple[list[_Introduction], RendezvousServer | None]:
    """One allGather (it costs about a second: BarrierTaskContext polls once a second). `stack` closes the server."""
    addresses = [host_of(info.address) for info in context.getTaskInfos()]
    partition = context.partitionId()
    server = None
    if partition == 0:
        server = RendezvousServer(_bindable(addresses), spec.size, spec.secret, spec.start_timeout_s)
        stack.callback(server.close)
    peer = Peer(partition, host_key(), socket.gethostname(), addresses[partition])
    mine = json.dumps({"peer": asdict(peer), "port": server.port if server else 0})
    answers = [json.loads(text) for text in _all_gather(context, mine, spec.start_timeout_s)]
    return [_Introduction(Peer(**answer["peer"]), answer["port"]) for answer in answers], server


def _all_gather(context: BarrierTaskContext, message: str, limit_s: float) -> list[str]:
    """`context.allGather`, which by itself waits for a year (spark.barrier.sync.timeout)."""
    answers: list[str] = []
    errors: list[BaseException] = []

    def gather() -> None:
        try:
            answers.extend(context.allGather(message))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=gather, name="hvdspark-gather", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not answers:
        raise StartTimeoutError(f"not all tasks of the barrier stage have started Python after {limit_s:g} s")
    return answers


def _bindable(addresses: list[str]) -> str:
    """Loopback when every executor has one address, so that nothing is open to the network; else all interfaces.

    All interfaces, because the address under which others reach this executor may not exist on it (NAT, services
    in front of pods). Requests without the run's secret are refused.
    """
    return LOOPBACK if len(set(addresses)) == 1 else ""


def _rendezvous_host(peers: list[Peer]) -> str:
    """Where tasks reach the server of partition 0; loopback exactly where `_bindable` or sharing a host allows it."""
    shared = one_host(peers) or len({peer.address for peer in peers}) == 1
    return LOOPBACK if shared else peers[0].address


def _watch(process: RankProcess, gang: RendezvousClient, rank: int) -> dict[str, Any]:
    """Let the rank begin with the others, wait for it to end, stop it when the gang must stop, and report its outcome
    to the server."""
    ended = threading.Event()
    threads = [
        threading.Thread(target=_start_with_the_gang, args=(process, gang, rank, ended), daemon=True),
        threading.Thread(target=_stop_with_the_gang, args=(process, gang, rank, ended), daemon=True),
    ]
    for thread in threads:
        thread.start()
    outcome = process.wait()
    ended.set()
    with contextlib.suppress(OSError):  # without the server, the row that follows still tells the driver
        outcome["order"] = retried(
            lambda: gang.record(rank, {"status": outcome["status"], "kind": outcome.get("kind", "")})
        )
    return outcome


def _start_with_the_gang(process: RankProcess, gang: RendezvousClient, rank: int, ended: threading.Event) -> None:
    """No rank calls `hvd.init` before all of them can: Gloo's time limit for that is none for slow imports."""
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


def _stop_with_the_gang(process: RankProcess, gang: RendezvousClient, rank: int, ended: threading.Event) -> None:
    heard_s = time.monotonic()
    while not ended.is_set():
        try:
            cause = gang.stop_cause(rank)
            heard_s = time.monotonic()
        except OSError:
            cause = _SERVER_GONE if time.monotonic() - heard_s > _SERVER_GONE_S else None
            ended.wait(_RETRY_PAUSE_S)
        if cause is not None and not ended.is_set():
            process.stop(cause)
            return


def _keep_until_all_reported(server: RendezvousServer) -> None:
    """Hold the server while ranks run. Unlimited while all is well; Spark ends this task if an executor is lost."""
    while not server.outcomes.wait_all(wait_s=1.0):
        if server.outcomes.must_stop(wait_s=0):
            server.outcomes.wait_all(wait_s=_LAST_REPORTS_S)
            return
        if server.outcomes.rest_is_silent(_SILENT_S):
            return  # the rows of those tasks tell the driver how their ranks ended


def _rows(world: World, outcome: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    result: bytes = outcome.pop("result", b"")
    outcome = {**outcome, "host": world.hostname, "ended_at_s": time.time()}
    for sequence, start in enumerate(range(0, max(len(result), 1), _CHUNK_BYTES)):
        yield pa.RecordBatch.from_pydict(
            {
                "rank": [world.rank],
                "outcome": [json.dumps(outcome) if sequence == 0 else ""],
                "sequence": [sequence],
                "chunk": [result[start : start + _CHUNK_BYTES]],
            },
            schema=_ARROW_SCHEMA,
        )
